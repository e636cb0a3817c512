"""Capacity arithmetic: how many equal workers fit on which machines. Pure.

Amounts are integers in ten-thousandths of a CPU or GPU (Ray's own resolution), so 3 × 0.3333 fits into 1 and
sums have no rounding error.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache
from itertools import groupby
from typing import Self

from service.backends.cluster import Node
from service.jobs.job import Job

UNITS = 10_000
UNLIMITED = sys.maxsize


@dataclass(frozen=True, kw_only=True)
class Amount:
    """CPUs and GPUs in units of 1/10,000."""

    cpus: int = 0
    gpus: int = 0

    @classmethod
    def of(cls, cpus: float, gpus: float) -> Self:
        return cls(cpus=_units(cpus), gpus=_units(gpus))

    def __add__(self, other: Amount) -> Amount:
        return Amount(cpus=self.cpus + other.cpus, gpus=self.gpus + other.gpus)

    def __sub__(self, other: Amount) -> Amount:
        return Amount(cpus=self.cpus - other.cpus, gpus=self.gpus - other.gpus)

    def __mul__(self, times: int) -> Amount:
        return Amount(cpus=self.cpus * times, gpus=self.gpus * times)

    def holds(self, each: Amount) -> int:
        """Returns how many times `each` fits."""
        return min(_times(self.cpus, each.cpus), _times(self.gpus, each.gpus))


@lru_cache(maxsize=1024)  # jobs ask for few different amounts, which are converted in every round
def _units(value: float) -> int:
    """Returns `value` in units, at least one for any positive value; exact for every float."""
    return max(round(Fraction(value) * UNITS), 1) if value > 0 else 0


def _times(free: int, each: int) -> int:
    return UNLIMITED if each == 0 else max(free, 0) // each


@dataclass(frozen=True, kw_only=True)
class Demand:
    """What a job asks for: `least` to `most` equal workers in multiples of `step`, each needing `each`."""

    least: int
    most: int
    step: int
    each: Amount

    @classmethod
    def of(cls, job: Job) -> Self:
        resources = job.resources
        return cls(
            least=resources.min_workers,
            most=job.most_workers,
            step=job.worker_step,
            each=Amount.of(resources.cpus_per_worker, resources.gpus_per_worker),
        )

    def granted(self, room: int) -> int:
        """Returns the maximum number of workers for this gang if `room` workers fit; 0 if it cannot start."""
        workers = min(room, self.most) // self.step * self.step
        return workers if workers >= self.least else 0


@dataclass(frozen=True, kw_only=True)
class Machine:
    """A node, with what it has in total and what is free."""

    id: str
    total: Amount
    free: Amount


Machines = tuple[Machine, ...]


def empty(nodes: Iterable[Node]) -> Machines:
    """Returns the machines with nothing on them, sorted by id."""
    totals = [(node.id, Amount.of(node.cpus, node.gpus)) for node in sorted(nodes, key=lambda node: node.id)]
    return tuple(Machine(id=id, total=total, free=total) for id, total in totals)


def occupied(nodes: Iterable[Node], active: Iterable[Job]) -> Machines:
    """Returns the machines with the active jobs' workers on them, the largest workers placed first.

    This is an estimate, because Ray decides where workers really are. Workers that fit nowhere (a machine was
    lost, or Ray packed them better) take free amounts in pieces, so the total left is never too large: a job
    may wait a little longer, but none is started without room.
    """
    machines = empty(nodes)
    gangs = sorted(map(_held, active), key=lambda gang: (-gang[0].gpus, -gang[0].cpus, gang[2]))
    for each, alike in groupby(gangs, key=lambda gang: gang[0]):
        sizes = [workers for _, workers, _ in alike]
        # Gangs of equal workers are placed together. The result is the same as one by one, and with a
        # thousand jobs and machines, visiting every machine for every job takes minutes.
        machines, unplaced = place(machines, each, sum(sizes))
        for count in _last(sizes, unplaced):
            machines = _take_in_pieces(machines, each, count)
    return machines


def _held(job: Job) -> tuple[Amount, int, str]:
    demand = Demand.of(job)
    return demand.each, demand.least if job.workers is None else job.workers, job.id


def _last(sizes: Iterable[int], count: int) -> list[int]:
    """Splits the last `count` workers by gang; gangs that have none of them are left out.

    >>> _last([3, 3, 3], 4)
    [1, 3]
    """
    pieces = []
    for size in reversed(list(sizes)):
        pieces.append(min(size, count))
        count -= pieces[-1]
    return [piece for piece in reversed(pieces) if piece]


def place(machines: Machines, each: Amount, workers: int) -> tuple[Machines, int]:
    """Places workers on the machines with the least free, those without free GPUs first.

    Returns the machines afterwards and the number of workers that did not fit.
    """
    taken: dict[str, int] = {}
    for machine in sorted(machines, key=_tightness):
        if count := min(machine.free.holds(each), workers):
            taken[machine.id] = count
            workers -= count
    return tuple(_less(m, each * taken[m.id]) if m.id in taken else m for m in machines), workers


def _less(machine: Machine, amount: Amount) -> Machine:
    return replace(machine, free=machine.free - amount)


def room(machines: Sequence[Machine], each: Amount) -> int:
    """Returns how many workers fit into what is free."""
    return sum(machine.free.holds(each) for machine in machines)


def total(amounts: Iterable[Amount]) -> Amount:
    return sum(amounts, Amount())


def _tightness(machine: Machine) -> tuple[int, int, str]:
    return machine.free.gpus, machine.free.cpus, machine.id


def _take_in_pieces(machines: Machines, each: Amount, unplaced: int) -> Machines:
    """Takes the amount of `unplaced` workers wherever anything is free, the machines with most free first."""
    left = each * unplaced
    after = {machine.id: machine for machine in machines}
    for machine in sorted(machines, key=_tightness, reverse=True):
        piece = Amount(cpus=min(machine.free.cpus, left.cpus), gpus=min(machine.free.gpus, left.gpus))
        after[machine.id] = replace(machine, free=machine.free - piece)
        left -= piece
    return tuple(after.values())
