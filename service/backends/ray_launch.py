"""Launches a start: place → GPU ids → agents ready → earlier start cleared → rendezvous → orders.

If anything goes wrong, the launch begins again. Ranks of the start that already run are ended first.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from time import monotonic

from service.backends import ray_calls
from service.backends.cluster import Launch
from service.backends.gangs import does_not_answer, host_orders, nodes_of_ranks
from service.backends.ray_gang import Gang, Gpus
from service.backends.ray_host import Host
from training.backoff import Backoff
from training.protocol import CodeMissing, Order, StartStatus, Superseded
from training.spec import Resources

log = logging.getLogger(__name__)

NO_ROOM = "waits for room in Ray, which other users have taken"
_ROOM_SECONDS = 1.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.01, 0.5
_FREEING_SECONDS = 0.4
_GPU_SECONDS = 60.0
_RETRY_SECONDS = 1.0


class Pulse:
    """A condition variable for tasks of one event loop: each beat wakes all waiting tasks."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def beat(self) -> None:
        """Wakes all waiting tasks."""
        self._event.set()
        self._event = asyncio.Event()

    async def next(self) -> None:
        """Waits for the next beat."""
        await self._event.wait()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Waits until the condition holds; tests it at each beat."""
        while not condition():
            await self.next()


class _PlacementChanged(Exception):
    """A machine of the placement is gone, or an agent has ended: the launch begins again."""


@dataclass(frozen=True, kw_only=True)
class Launching:
    """The launch of one start.

    hosts: all hosts of the cluster, kept up to date. freeing: returns whether a placement is about to be
    freed. changed: called when the launch's message changes.
    """

    gang: Gang
    launch: Launch
    hosts: Mapping[str, Host]
    pulse: Pulse
    freeing: Callable[[], bool]
    changed: Callable[[], object]

    async def run(self) -> None:
        """Returns when every host has reported the start. Raises only Superseded."""
        while True:
            try:
                nodes = await self._placed()
                await self._order(nodes, await self._gpus(nodes))
            except Superseded:
                raise
            except Exception as error:
                if not isinstance(error, _PlacementChanged):
                    log.warning("%s: %s: %s", self.gang.name, type(error).__name__, error)
                    self._set_message(str(error) or type(error).__name__)
                await asyncio.sleep(_RETRY_SECONDS)
            else:
                self.gang.message = None
                self.changed()
                return

    def _set_message(self, message: str) -> None:
        if message != self.gang.message:
            self.gang.message = message
            self.changed()

    async def _placed(self) -> tuple[str, ...]:
        """Creates the placement group and returns the node of each bundle, once Ray has placed all."""
        name, began, backoff = self.gang.name, monotonic(), Backoff(_FIRST_PAUSE, _LONGEST_PAUSE)
        while True:
            group = self.gang.group = await ray_calls.in_thread(ray_calls.group, name)
            if group is None:
                # Ray retries a gang that it cannot place at once only after a second, so wait for the room.
                with suppress(TimeoutError):
                    async with asyncio.timeout(_FREEING_SECONDS):
                        await self.pulse.until(lambda: not self.freeing())
                resources, workers = self.launch.resources, self.launch.order.world_size
                await ray_calls.in_thread(
                    ray_calls.create_group, name, _bundle(resources), resources.labels, workers
                )
            elif group.placed:
                return group.nodes
            elif monotonic() - began > _ROOM_SECONDS:
                self._set_message(NO_ROOM)
            await asyncio.sleep(backoff.next())

    async def _gpus(self, nodes: tuple[str, ...]) -> Gpus:
        """Returns the GPU ids of each bundle. Only a task that runs in the bundle can read them."""
        count = self.launch.resources.gpus_per_worker
        if not count:
            return ((),) * len(nodes)
        if nodes not in self.gang.gpus:
            references = [
                await ray_calls.in_thread(ray_calls.gpus_of, self.gang.name, bundle, count)
                for bundle in range(len(nodes))
            ]
            ids = await asyncio.gather(*(ray_calls.answer(each, _GPU_SECONDS) for each in references))
            self.gang.gpus = {nodes: tuple(map(tuple, ids))}
        return self.gang.gpus[nodes]

    async def _order(self, nodes: Sequence[str], gpus: Gpus) -> None:
        await self._ready(nodes)
        await self._clear()
        order, name = await self._with_secrets(), self.gang.name
        hosts = [self.hosts[node] for node in host_orders(order, nodes, gpus, None)]
        instances = [host.instance for host in hosts]
        rendezvous = None
        if len(hosts) > 1:
            rendezvous = await hosts[0].call("rendezvous", name, order.start, hosts[0].node.address)
        orders = host_orders(order, nodes, gpus, rendezvous)
        self.gang.nodes = nodes_of_ranks(nodes)
        if order.spec.get("environment", {}).get("requirements"):
            await self._install(hosts, instances, orders)
        # Rank 0's host first: if its launch fails, no other host has ranks that wait for rank 0.
        await self._launch_on(hosts[0], orders[hosts[0].node.id])
        await asyncio.gather(*(self._launch_on(host, orders[host.node.id]) for host in hosts[1:]))

        def is_known() -> bool:
            _raise_if_changed(hosts, instances)
            return all(self._has_start(host) for host in hosts)

        await self.pulse.until(is_known)

    async def _with_secrets(self) -> Order:
        if self.launch.secrets is None:
            return self.launch.order
        return replace(self.launch.order, secrets=await ray_calls.in_thread(self.launch.secrets))

    async def _install(
        self, hosts: Sequence[Host], instances: Sequence[str], orders: Mapping[str, Order]
    ) -> None:
        """Returns when all hosts have installed the requirements, so that no rank waits for another host's.

        If a host could not, its ranks have ended; the others' are launched, and ended with them.
        """
        await asyncio.gather(*(self._launch_on(host, orders[host.node.id], "prepare") for host in hosts))

        def is_done() -> bool:
            _raise_if_changed(hosts, instances)
            known = [host.known(self.gang.name) for host in hosts]
            statuses = [status for status in known if status and status.start == self.launch.order.start]
            is_whole = len(statuses) == len(hosts) and all(status.prepared for status in statuses)
            return is_whole or any(status.ended for status in statuses)

        await self.pulse.until(is_done)

    def _has_start(self, host: Host) -> bool:
        known = host.known(self.gang.name)
        # Not one whose ranks the host has yet to fork, as before the launch.
        return known is not None and known.start == self.launch.order.start and not known.installing

    async def _clear(self) -> None:
        """Ends what is left of an earlier start, or of an incomplete launch of this one."""
        while holders := self._holders():
            await self._end_or_forget(holders)

    async def _end_or_forget(self, holders: list[tuple[Host, StartStatus]]) -> None:
        """Sends the orders, and returns when the hosts' reports change, which may be before they answer."""
        for host, status in holders:
            await host.call("forget" if status.ended else "end", self.gang.name)
        if not all(status.ended for _, status in holders):
            self._set_message("waits for the end of its last start")
        await self.pulse.until(lambda: self._holders() != holders)

    def _holders(self) -> list[tuple[Host, StartStatus]]:
        present = [host for host in self.hosts.values() if host.gone_at is None]
        return [(host, known) for host in present if (known := host.known(self.gang.name)) is not None]

    async def _ready(self, nodes: Sequence[str]) -> None:
        def all_warm() -> bool:
            for node in nodes:
                host = self.hosts.get(node)
                if host is not None and host.gone_at is not None:
                    raise _PlacementChanged
                if host is None or not host.warm:
                    self._set_message(_waits_for(host))
                    return False
            self._set_message("")
            return True

        await self.pulse.until(all_warm)

    async def _launch_on(self, host: Host, order: Order, call: str = "launch") -> None:
        try:
            await host.call(call, order)
        except CodeMissing:
            assert self.launch.code is not None
            archive = await ray_calls.in_thread(self.launch.code)
            await host.call("put_code", order.code, archive)
            await host.call(call, order)


def _raise_if_changed(hosts: Sequence[Host], instances: Sequence[str]) -> None:
    """Raises _PlacementChanged if a machine is gone, or its agent is another one than before."""
    if any(host.gone_at is not None for host in hosts) or instances != [host.instance for host in hosts]:
        raise _PlacementChanged


def _bundle(resources: Resources) -> dict[str, float]:
    """Returns what Ray reserves for a worker."""
    amounts = {
        "CPU": resources.cpus_per_worker,
        "GPU": resources.gpus_per_worker,
        "memory": resources.memory_per_worker or 0,
    }
    return {kind: amount for kind, amount in amounts.items() if amount}


def _waits_for(host: Host | None) -> str:
    if host is None:
        return "waits for Ray to list a machine on which it has placed workers"
    if not host.answers:
        return does_not_answer(host.node.address)
    return f"the host agent on {host.node.address} is starting"
