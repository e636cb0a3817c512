"""A gang's orders, from its placement, and its status, from its hosts' reports. Pure.

A rank whose machine or host agent is gone before its exit record was reported is LOST.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from service.backends.cluster import Phase, Status
from training.protocol import Exit, ExitRecord, Order, Progress, RankAssignment, StartStatus

UNKNOWN_START = sys.maxsize
"""The start of an attempt whose hosts have not answered this scheduler yet: no launch replaces it."""


# Orders


def ranks_by_node(bundles: Sequence[str]) -> dict[str, dict[int, int]]:
    """Returns the bundle of each rank, by node. The ranks of a node are consecutive.

    bundles: the node of each bundle.

    >>> ranks_by_node(["a", "b", "a"])
    {'a': {0: 0, 1: 2}, 'b': {2: 1}}
    """
    grouped: dict[str, list[int]] = {}
    for bundle, node in enumerate(bundles):
        grouped.setdefault(node, []).append(bundle)
    ranks = iter(range(len(bundles)))
    return {node: {next(ranks): bundle for bundle in held} for node, held in grouped.items()}


def nodes_of_ranks(bundles: Sequence[str]) -> dict[int, str]:
    """Returns the node of each rank."""
    return {rank: node for node, held in ranks_by_node(bundles).items() for rank in held}


def host_orders(
    order: Order, bundles: Sequence[str], gpus: Sequence[tuple[str, ...]], rendezvous: str | None
) -> dict[str, Order]:
    """Returns the order for each node, the node of rank 0 first.

    bundles: the node of each bundle. gpus: the GPU ids of each bundle. rendezvous: its address, or None.
    """
    orders, nodes = {}, ranks_by_node(bundles)
    for node_rank, (node, held) in enumerate(nodes.items()):
        assignments = tuple(
            RankAssignment(rank=rank, local_rank=local_rank, node_rank=node_rank, gpus=gpus[bundle])
            for local_rank, (rank, bundle) in enumerate(held.items())
        )
        orders[node] = replace(order, ranks=assignments, rendezvous=rendezvous, hosts=len(nodes))
    return orders


# Status


@dataclass(frozen=True, kw_only=True)
class Lost:
    """Why and when ranks were lost with their host; `before`: the agent's last report of them."""

    why: str
    when: float
    before: StartStatus | None = None


@dataclass(frozen=True, kw_only=True)
class HostView:
    """What is known of one attempt on one host.

    answers: whether its agent has reported. known: the agent's report of the attempt.
    lost: set if the machine or its agent's state is gone, and the ranks with it.
    """

    address: str
    answers: bool = True
    known: StartStatus | None = None
    lost: Lost | None = None


@dataclass(frozen=True, kw_only=True)
class GangView:
    """What this scheduler knows of an attempt.

    hosts: by node. nodes: the node of each rank, if known. world_size: 0 if unknown.
    launched: the latest start that this scheduler has launched, or 0. message: what the launch in progress
    waits for; None if no launch is in progress. cancelled: the launch was given up, so ranks that have not
    started never will.
    """

    hosts: Mapping[str, HostView]
    nodes: Mapping[int, str] = field(default_factory=dict)
    world_size: int = 0
    launched: int = 0
    message: str | None = None
    cancelled: bool = False


def status_of(gang: GangView, now: float) -> Status:
    """Returns the status of the gang's latest start. `now`: seconds since the epoch."""
    reports = {node: host.known for node, host in gang.hosts.items() if host.known is not None}
    start = max([gang.launched, *(report.start for report in reports.values())])
    known = {node: report for node, report in reports.items() if report.start == start}
    if gang.message is not None:
        return _in_launch(start, tuple(known.values()), gang.message)
    if start == 0:
        return _never_launched(gang.hosts.values())
    return _launched(gang, start, known, now)


def _in_launch(start: int, known: Sequence[StartStatus], message: str) -> Status:
    exits = tuple(record for status in known for record in status.exits)
    if installing := _installing(known):
        return Status(phase=Phase.INSTALLING, start=start, exits=exits, message=installing)
    return Status(phase=Phase.STARTING if known else Phase.PLACING, start=start, exits=exits, message=message)


def _installing(known: Iterable[StartStatus]) -> str:
    """Returns which host still installs the requirements, or ""."""
    return next((status.installing for status in known if status.installing and not status.prepared), "")


def _never_launched(hosts: Iterable[HostView]) -> Status:
    """Returns the status of a placement without ranks: its scheduler died before it gave orders, or its hosts
    have not reported yet.
    """
    silent = next((host for host in hosts if not host.answers and host.lost is None), None)
    if silent is not None:
        return Status(phase=Phase.RUNNING, start=UNKNOWN_START, message=does_not_answer(silent.address))
    return Status(phase=Phase.ENDED, start=0)


def does_not_answer(address: str) -> str:
    return f"the host agent on {address} has not answered yet"


def _launched(gang: GangView, start: int, known: Mapping[str, StartStatus], now: float) -> Status:
    seen = [*known.values(), *_before(gang, start)]
    joined = any(status.joined for status in seen)
    progress = max((status.progress for status in seen if status.progress), key=_step, default=None)
    records = {record.rank: record for status in seen for record in status.exits if record.rank is not None}
    ranks = {*gang.nodes, *range(gang.world_size), *_ranks(known.values())}
    unknown = []
    for rank in sorted(ranks - records.keys() - _ranks(known.values())):
        lost = _lost(gang, rank, joined=joined)
        if gang.cancelled and (lost is None or lost.before is None):
            records[rank] = ExitRecord(rank=rank, kind=Exit.ENDED, when=now)
        elif lost is not None:
            records[rank] = _record(rank, lost, progress)
        else:
            unknown.append(rank)
    if any(gang.hosts[gang.nodes[rank]].answers for rank in unknown):
        return _half_launched(start, known.values())
    if not records and any(status.installing for status in known.values()):
        # A scheduler died while hosts installed the requirements, and none has forked a rank.
        return _half_launched(start, known.values())
    if len(records) == len(ranks):
        phase = Phase.ENDED
    else:
        phase = (
            Phase.RUNNING if joined and all(status.joined for status in known.values()) else Phase.STARTING
        )
    exits = tuple(records[rank] for rank in sorted(records))
    seconds = max((status.seconds for status in seen), default=0.0)
    return Status(phase=phase, start=start, exits=exits, progress=progress, seconds=seconds)


def _before(gang: GangView, start: int) -> Iterator[StartStatus]:
    """Yields the last reports of lost hosts on this start."""
    for host in gang.hosts.values():
        if host.lost is not None and host.lost.before is not None and host.lost.before.start == start:
            yield host.lost.before


def _lost(gang: GangView, rank: int, *, joined: bool) -> Lost | None:
    """Returns how a rank that no agent reports was lost; None if it has not started, or its host has not
    reported yet.
    """
    host = gang.hosts.get(gang.nodes.get(rank, ""))
    if host is None:
        return Lost(why="its machine is gone", when=0.0)
    if host.lost is None and host.answers and joined:
        # No rank joins the process group before all ranks are there, so this rank had been started, and its
        # agent has lost it.
        return Lost(why=f"the host agent on {host.address} ended", when=0.0)
    return host.lost


def _record(rank: int, lost: Lost, progress: Progress | None) -> ExitRecord:
    step = progress.step if progress is not None else 0
    return ExitRecord(rank=rank, kind=Exit.LOST, step=step, message=lost.why, when=lost.when)


def _half_launched(start: int, known: Iterable[StartStatus]) -> Status:
    """Returns the status if a scheduler died while giving orders: it reports the start before, so that what
    runs is ended and the start is launched again.
    """
    phase = Phase.ENDED if all(status.ended for status in known) else Phase.STARTING
    return Status(phase=phase, start=start - 1)


def _ranks(known: Iterable[StartStatus]) -> set[int]:
    return {rank for status in known for rank in status.ranks}


def _step(progress: Progress) -> int:
    return progress.step
