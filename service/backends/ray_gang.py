"""A gang on Ray: one attempt's placement, its hosts' reports, and the orders for it."""

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
    """The state of one attempt. Used only in the event loop's thread.

    launched: the latest start that this scheduler has launched, or 0. message: what the launch in progress
    waits for; None if no launch is in progress. cancelled: the launch was given up. nodes: the node of each
    rank of that start. ending: it has to end. released: its placement has to be freed; removed: it was freed.
    stop_seconds: how long it may take to stop, or None if it was not asked to.
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
        self._reports: dict[str, tuple[str, StartStatus]] = {}  # by node: the agent's instance, its report

    def begin(self, launch: Launch) -> None:
        """Begins the launch of a start; orders for an earlier start no longer apply."""
        self.launched, self.world_size = launch.order.start, launch.order.world_size
        self.message, self.cancelled, self.ending, self.stop_seconds = "", False, False, None
        self.nodes, self._reports = {}, {}

    def cancel(self) -> bool:
        """Gives up the launch in progress; returns whether there was one."""
        if self.message is None:
            return False
        assert self.task is not None
        self.task.cancel()
        self.message, self.cancelled = None, True
        return True

    def hear(self, host: Host) -> None:
        """Keeps the host's report of this attempt, in case the host is lost."""
        if (status := host.known(self.name)) is not None:
            self._reports[host.node.id] = host.instance, status

    def status(self, hosts: Mapping[str, Host]) -> Status:
        """Returns the status of the latest start."""
        return status_of(self._view(hosts), time.time())

    def mentions(self, node: str) -> bool:
        """Returns whether the attempt has anything to do with the node."""
        placed = self.group.nodes if self.group is not None else ()
        return node in self._reports or node in placed or node in self.nodes.values()

    def _view(self, hosts: Mapping[str, Host]) -> GangView:
        nodes, world_size = self.nodes, self.world_size
        if self.group is not None:
            world_size = world_size or len(self.group.nodes)
            if not nodes and self.group.placed:
                nodes = nodes_of_ranks(self.group.nodes)
        involved = {node for node, host in hosts.items() if host.known(self.name)} | {*nodes.values()}
        return GangView(
            hosts={node: self._host(hosts[node]) for node in involved & hosts.keys()},
            nodes=nodes,
            world_size=world_size,
            launched=self.launched,
            message=self.message,
            cancelled=self.cancelled,
        )

    def _host(self, host: Host) -> HostView:
        address, known = host.node.address, host.known(self.name)
        instance, report = self._reports.get(host.node.id, (host.instance, None))
        if host.gone_at is not None:
            lost = Lost(why=f"the machine {address} is gone", when=host.gone_at, before=report)
            return HostView(address=address, lost=lost)
        if known is None and instance != host.instance:
            lost = Lost(why=f"the host agent on {address} ended", when=host.since, before=report)
            return HostView(address=address, answers=host.answers, lost=lost)
        return HostView(address=address, answers=host.answers, known=known)
