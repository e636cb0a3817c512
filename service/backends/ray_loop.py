"""What of the cluster runs in an event loop: looks at Ray, conversations, launches, orders that are due."""

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
_FREED_SECONDS = 0.15  # until machines have told Ray's head what is free again


class RayLoop:
    """Used in the thread of its event loop alone. `changed` is called when `attempts` may say something new.

    looked_at: when Ray has last answered, by the monotonic clock.
    """

    def __init__(self, fence: int, changed: Callable[[], object]) -> None:
        self._fence, self._changed = fence, changed
        self.nodes: list[Node] = []
        self.looked_at = monotonic()
        self.superseded = False
        self._hosts: dict[str, Host] = {}
        self._conversations: dict[str, asyncio.Task[None]] = {}
        self._gangs: dict[str, Gang] = {}
        self._known_groups: dict[str, bool] = {}  # by id, whether they are ours
        self._on_their_way: set[tuple[str, str, str]] = set()  # orders: machine, order, attempt
        self._tasks: set[asyncio.Task[None]] = set()
        self._pulse = Pulse()

    async def start(self) -> None:
        """Returns when Ray has named its machines; the work goes on until `close`."""
        await self._look()
        self._spawn(self._look_on())
        self._spawn(self._give_orders())

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # What the scheduler asks for

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
            said=self._tell,
        )
        gang.task = self._spawn(launching.run())
        self._tell()

    def stop(self, name: str, seconds: float) -> None:
        if (gang := self._gangs.get(name)) is not None:
            if gang.cancel():
                gang.ending = True  # not all ranks were ordered, so none has made a step that could be saved
            gang.stop_seconds = min(seconds, gang.stop_seconds or seconds)
            self._tell()

    def end(self, name: str) -> None:
        if (gang := self._gangs.get(name)) is not None:
            gang.cancel()
            gang.ending = True
            self._tell()

    def release(self, name: str) -> None:
        if (gang := self._gangs.get(name)) is not None:
            gang.cancel()
            gang.released = True
            self._tell()

    # What Ray knows

    async def _look_on(self) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            try:
                await self._look()
            except Exception as error:
                log.warning("Ray: %s: %s", type(error).__name__, error)

    async def _look(self) -> None:
        nodes = await ray_calls.in_thread(ray_calls.nodes)
        groups = await ray_calls.in_thread(ray_calls.groups, self._known_groups)
        self.looked_at = monotonic()
        if nodes != self.nodes:
            self.nodes = nodes
            self._meet({node.id: node for node in nodes})
            self._tell()
        for name in groups.keys() - self._gangs.keys():
            self._gangs[name] = Gang(name)
            self._tell()
        for name, gang in list(self._gangs.items()):
            if gang.message is None:  # a launch looks for itself
                gang.group = groups.get(name)
            if gang.group is None and not gang.launched and not self._holders(name):
                del self._gangs[name]
                self._tell()
        self._forget_hosts()

    def _meet(self, nodes: Mapping[str, Node]) -> None:
        """Begins a conversation with each new machine, and ends those with machines that are gone."""
        for node in nodes.keys() - self._hosts.keys():
            host = self._hosts[node] = Host(nodes[node], self._fence, self._heard)
            self._conversations[node] = self._spawn(host.converse())
        for node, host in self._hosts.items():
            if node not in nodes and host.gone_at is None:
                host.gone_at = time.time()
                self._conversations.pop(node).cancel()

    def _forget_hosts(self) -> None:
        """Those that are gone, once no attempt had anything to do with them."""
        for node, host in list(self._hosts.items()):
            if host.gone_at is not None and not any(gang.mentions(node) for gang in self._gangs.values()):
                del self._hosts[node]

    # What agents tell

    def _heard(self, host: Host) -> None:
        self.superseded |= host.superseded
        for name in host.attempts:
            self._gangs.setdefault(name, Gang(name)).hear(host)
        self._tell()

    def _tell(self) -> None:
        """Something has changed: for what waits in the loop, and for the scheduler."""
        self._pulse.beat()
        self._changed()

    def _holders(self, name: str) -> list[Host]:
        """The hosts that know of an attempt."""
        return [host for host in self._hosts.values() if host.gone_at is None and host.known(name)]

    # Orders that are due. One that does not arrive is due again, and harmless where it arrives twice.

    async def _give_orders(self) -> None:
        while True:
            for gang in list(self._gangs.values()):
                self._order(gang)
            await self._pulse.next()

    def _order(self, gang: Gang) -> None:
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
        # The place is given back when nothing runs in it any more, and the name when nobody tells of it.
        if gang.released and not gang.removed and not self._at_work(gang.name):
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
            gang.released and not gang.removed and not self._at_work(gang.name)
            for gang in self._gangs.values()
        )

    def _at_work(self, name: str) -> bool:
        known = (host.known(name) for host in self._holders(name))
        return any(status is not None and not status.ended for status in known)

    def _once(self, key: tuple[str, str, str], order: Coroutine[Any, Any, Any]) -> None:
        """Carries it out, unless the same was begun less than a moment ago, or is still on its way."""
        if key in self._on_their_way:
            order.close()
        else:
            self._on_their_way.add(key)
            self._spawn(self._carried_out(key, order))

    async def _carried_out(self, key: tuple[str, str, str], order: Coroutine[Any, Any, Any]) -> None:
        try:
            await order
        except Superseded:
            return
        except Exception as error:
            log.info("%s of %s: %s", key[1], key[0], error)
        await asyncio.sleep(_SECONDS_BETWEEN_ORDERS)
        self._on_their_way.discard(key)
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
