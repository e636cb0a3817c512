"""The Ray cluster's event loop: polls Ray, talks to host agents, launches starts, sends orders."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Mapping
from time import monotonic
from typing import Any

from service.backends import ray_calls
from service.backends.cluster import Launch, Node, Status
from service.backends.ray_gang import Gang
from service.backends.ray_host import Host
from service.backends.ray_launch import Launching, Pulse
from training.protocol import Superseded

log = logging.getLogger(__name__)

LOOK_SECONDS = 2.0
_SECONDS_BETWEEN_ORDERS = 1.0
_FREED_SECONDS = 0.15  # until machines have reported their freed resources to Ray's head


class RayLoop:
    """The cluster's state. Used only in its event loop's thread.

    changed: called when the result of `attempts` may have changed. looked_at: when Ray last answered, by the
    monotonic clock. superseded: whether an agent has refused this scheduler's number.
    """

    def __init__(self, fence: int, changed: Callable[[], object]) -> None:
        self._fence, self._changed = fence, changed
        self.nodes: list[Node] = []
        self.looked_at = monotonic()
        self.superseded = False
        self._hosts: dict[str, Host] = {}
        self._conversations: dict[str, asyncio.Task[None]] = {}
        self._gangs: dict[str, Gang] = {}
        self._known_groups: dict[str, bool] = {}  # by id: whether the group is ours
        self._in_flight: set[tuple[str, str, str]] = set()  # orders: attempt, order, machine
        self._tasks: set[asyncio.Task[None]] = set()
        self._pulse = Pulse()

    async def start(self) -> None:
        """Returns when Ray has listed its machines. Background tasks run until `close`."""
        await self._poll()
        self._spawn(self._keep_polling())
        self._spawn(self._send_orders())

    async def close(self) -> None:
        """Cancels all tasks and waits for their end."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # Called by the scheduler

    def attempts(self) -> dict[str, Status]:
        return {name: gang.status(self._hosts) for name, gang in self._gangs.items() if not gang.released}

    def launch(self, launch: Launch) -> None:
        gang = self._gangs.setdefault(launch.name, Gang(launch.name))
        if gang.released or gang.status(self._hosts).start >= launch.order.start:
            return
        gang.cancel()
        gang.begin(launch)
        launching = Launching(
            gang=gang,
            launch=launch,
            hosts=self._hosts,
            pulse=self._pulse,
            freeing=self._is_freeing,
            changed=self._notify,
        )
        gang.task = self._spawn(launching.run())
        self._notify()

    def stop(self, name: str, seconds: float) -> None:
        if (gang := self._gangs.get(name)) is not None:
            if gang.cancel():
                gang.ending = True  # not all ranks were ordered, so none has made a step worth saving
            gang.stop_seconds = min(seconds, gang.stop_seconds or seconds)
            self._notify()

    def end(self, name: str) -> None:
        if (gang := self._gangs.get(name)) is not None:
            gang.cancel()
            gang.ending = True
            self._notify()

    def release(self, name: str) -> None:
        if (gang := self._gangs.get(name)) is not None:
            gang.cancel()
            gang.released = True
            self._notify()

    # What Ray knows

    async def _keep_polling(self) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            try:
                await self._poll()
            except Exception as error:
                log.warning("Ray: %s: %s", type(error).__name__, error)

    async def _poll(self) -> None:
        nodes = await ray_calls.in_thread(ray_calls.nodes)
        groups = await ray_calls.in_thread(ray_calls.groups, self._known_groups)
        self.looked_at = monotonic()
        if nodes != self.nodes:
            self.nodes = nodes
            self._meet({node.id: node for node in nodes})
            self._notify()
        for name in groups.keys() - self._gangs.keys():
            self._gangs[name] = Gang(name)
            self._notify()
        for name, gang in list(self._gangs.items()):
            if gang.message is None:  # a launch in progress updates its group itself
                gang.group = groups.get(name)
            if gang.group is None and not gang.launched and not self._holders(name):
                del self._gangs[name]
                self._notify()
        self._forget_hosts()

    def _meet(self, nodes: Mapping[str, Node]) -> None:
        """Starts a conversation with each new machine, and ends those with machines that are gone."""
        for node in nodes.keys() - self._hosts.keys():
            host = self._hosts[node] = Host(nodes[node], self._fence, self._heard)
            self._conversations[node] = self._spawn(host.converse())
        for node, host in self._hosts.items():
            if node not in nodes and host.gone_at is None:
                host.gone_at = time.time()
                self._conversations.pop(node).cancel()

    def _forget_hosts(self) -> None:
        """Forgets hosts that are gone, once no attempt refers to them."""
        for node, host in list(self._hosts.items()):
            if host.gone_at is not None and not any(gang.mentions(node) for gang in self._gangs.values()):
                del self._hosts[node]

    # Agents' reports

    def _heard(self, host: Host) -> None:
        self.superseded |= host.superseded
        for name in host.attempts:
            self._gangs.setdefault(name, Gang(name)).hear(host)
        self._notify()

    def _notify(self) -> None:
        """Wakes the tasks of this loop and the scheduler, because something has changed."""
        self._pulse.beat()
        self._changed()

    def _holders(self, name: str) -> list[Host]:
        """Returns the hosts that have reported the attempt."""
        return [host for host in self._hosts.values() if host.gone_at is None and host.known(name)]

    # Orders. One that gets lost is sent again; all are idempotent.

    async def _send_orders(self) -> None:
        while True:
            for gang in list(self._gangs.values()):
                self._send_orders_for(gang)
            await self._pulse.next()

    def _send_orders_for(self, gang: Gang) -> None:
        holders = self._holders(gang.name)
        for host in holders:
            status = host.known(gang.name)
            assert status is not None
            if not status.ended and (gang.ending or gang.released):
                self._send("end", gang, host)
            elif not status.ended and gang.stop_seconds is not None:
                self._send("stop", gang, host, gang.stop_seconds)
            elif status.ended and gang.released:
                self._send("forget", gang, host)
        # The placement is freed once nothing runs in it, and the name once no host reports it.
        if gang.released and not gang.removed and not self._is_running(gang.name):
            self._once((gang.name, "remove", ""), self._remove(gang))
        elif gang.removed and not holders:
            self._gangs.pop(gang.name, None)

    def _send(self, order: str, gang: Gang, host: Host, *arguments: Any) -> None:
        self._once((gang.name, order, host.node.id), host.call(order, gang.name, *arguments))

    async def _remove(self, gang: Gang) -> None:
        await ray_calls.in_thread(ray_calls.remove_group, gang.name)
        await asyncio.sleep(_FREED_SECONDS)
        gang.removed = True
        self._pulse.beat()

    def _is_freeing(self) -> bool:
        return any(
            gang.released and not gang.removed and not self._is_running(gang.name)
            for gang in self._gangs.values()
        )

    def _is_running(self, name: str) -> bool:
        known = (host.known(name) for host in self._holders(name))
        return any(status is not None and not status.ended for status in known)

    def _once(self, key: tuple[str, str, str], order: Coroutine[Any, Any, Any]) -> None:
        """Sends the order, unless the same one is in flight or was sent less than a second ago."""
        if key in self._in_flight:
            order.close()
        else:
            self._in_flight.add(key)
            self._spawn(self._carry_out(key, order))

    async def _carry_out(self, key: tuple[str, str, str], order: Coroutine[Any, Any, Any]) -> None:
        try:
            await order
        except Superseded:
            return
        except Exception as error:
            log.info("%s of %s: %s", key[1], key[0], error)
        await asyncio.sleep(_SECONDS_BETWEEN_ORDERS)
        self._in_flight.discard(key)
        self._pulse.beat()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) and not isinstance(error, Superseded):
            log.error("a task of the cluster failed", exc_info=error)
