"""An attempt as this scheduler sees it: its place, what its hosts have told, and what is asked of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping

from service.backends import ray_calls
from service.backends.cluster import Launch, Status
from service.backends.gangs import GangView, HostView, Lost, nodes_of_ranks, status_of
from service.backends.ray_host import Host
from training.protocol import StartStatus

Gpus = tuple[tuple[str, ...], ...]
"""The ids of the GPUs of each bundle."""


class Gang:
    """Used in the thread of an event loop alone.

    launched: the latest start that this scheduler has launched, or 0. message: what the launch waits for
    that goes on; None: none does. cancelled: it was given up. nodes: of the ranks of that start.
    released, removed: its place is to be given back, and was.
    stop_seconds: how long it may take to stop, if it was asked to.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.group: ray_calls.Group | None = None
        self.launched, self.world_size = 0, 0
        self.message: str | None = None
        self.cancelled = self.ending = self.released = self.removed = False
        self.stop_seconds: float | None = None
        self.nodes: dict[int, str] = {}
        self.gpus: dict[tuple[str, ...], Gpus] = {}
        self.task: asyncio.Task[None] | None = None
        self._told: dict[str, tuple[str, StartStatus]] = {}  # by node: by which instance, and what

    def begin(self, launch: Launch) -> None:
        """A start is to be launched; of what was asked for an earlier one nothing holds."""
        self.launched, self.world_size = launch.order.start, launch.order.world_size
        self.message, self.cancelled, self.ending, self.stop_seconds = "", False, False, None
        self.nodes, self._told = {}, {}

    def cancel(self) -> bool:
        """Gives up the launch that goes on, if one does."""
        if self.message is None:
            return False
        assert self.task is not None
        self.task.cancel()
        self.message, self.cancelled = None, True
        return True

    def hear(self, host: Host) -> None:
        if (status := host.known(self.name)) is not None:
            self._told[host.node.id] = host.instance, status

    def status(self, hosts: Mapping[str, Host]) -> Status:
        return status_of(self._view(hosts), time.time())

    def mentions(self, node: str) -> bool:
        placed = self.group.nodes if self.group is not None else ()
        return node in self._told or node in placed or node in self.nodes.values()

    def _view(self, hosts: Mapping[str, Host]) -> GangView:
        nodes, world_size = self.nodes, self.world_size
        if self.group is not None:
            world_size = world_size or len(self.group.nodes)
            if not nodes and self.group.placed:
                nodes = nodes_of_ranks(self.group.nodes)
        concerned = {node for node, host in hosts.items() if host.known(self.name)} | {*nodes.values()}
        return GangView(
            hosts={node: self._host(hosts[node]) for node in concerned & hosts.keys()},
            nodes=nodes,
            world_size=world_size,
            launched=self.launched,
            message=self.message,
            cancelled=self.cancelled,
        )

    def _host(self, host: Host) -> HostView:
        address, known = host.node.address, host.known(self.name)
        instance, told = self._told.get(host.node.id, (host.instance, None))
        if host.gone_at is not None:
            lost = Lost(why=f"the machine {address} is gone", when=host.gone_at, before=told)
            return HostView(address=address, lost=lost)
        if known is None and instance != host.instance:
            lost = Lost(why=f"the host agent on {address} ended", when=host.since, before=told)
            return HostView(address=address, answers=host.answers, lost=lost)
        return HostView(address=address, answers=host.answers, known=known)
