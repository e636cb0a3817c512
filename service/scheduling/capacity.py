"""How many equal workers fit into which machines. Pure arithmetic.

Amounts are whole ten-thousandths of a CPU or GPU (Ray's own grain), so 3 × 0.3333 fits into 1 and sums
carry no rounding error.
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
        """How many times `each` fits in."""
        return min(_times(self.cpus, each.cpus), _times(self.gpus, each.gpus))


@lru_cache(maxsize=1024)  # of the few amounts that jobs ask for, asked about in every round
def _units(value: float) -> int:
    """At least one unit for anything asked; exact for any float, however large."""
    return max(round(Fraction(value) * UNITS), 1) if value > 0 else 0


def _times(free: int, each: int) -> int:
    return UNLIMITED if each == 0 else max(free, 0) // each


@dataclass(frozen=True, kw_only=True)
class Demand:
    """A gang: between `least` and `most` workers, in multiples of `step`, all alike."""

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
        """The most workers this gang can have where `room` of them fit; 0 if it cannot start."""
        workers = min(room, self.most) // self.step * self.step
        return workers if workers >= self.least else 0


@dataclass(frozen=True, kw_only=True)
class Machine:
    """A node and what nobody has taken of it."""

    id: str
    total: Amount
    free: Amount


Machines = tuple[Machine, ...]


def empty(nodes: Iterable[Node]) -> Machines:
    """The machines with nothing on them, in an order that does not depend on the caller's."""
    totals = [(node.id, Amount.of(node.cpus, node.gpus)) for node in sorted(nodes, key=lambda node: node.id)]
    return tuple(Machine(id=id, total=total, free=total) for id, total in totals)


def occupied(nodes: Iterable[Node], active: Iterable[Job]) -> Machines:
    """The machines with the active jobs' workers on them, the largest workers placed first.

    Where the workers really are is Ray's affair, so this is an estimate. Workers that fit nowhere (a machine
    was lost, or Ray packed them better) take what is free in pieces, so that never more is left in all than
    there really is: rather a job that waits a little longer than one that is started without room.
    """
    machines = empty(nodes)
    gangs = sorted(map(_held, active), key=lambda gang: (-gang[0].gpus, -gang[0].cpus, gang[2]))
    for each, alike in groupby(gangs, key=lambda gang: gang[0]):
        sizes = [workers for _, workers, _ in alike]
        # Gangs of equal workers are placed as one: each would go on where the one before it ended, and to
        # look at every machine for every job takes minutes where there are a thousand of both.
        machines, homeless = place(machines, each, sum(sizes))
        for piece in _last(sizes, homeless):
            machines = _used_up(machines, each, piece)
    return machines


def _held(job: Job) -> tuple[Amount, int, str]:
    demand = Demand.of(job)
    return demand.each, demand.least if job.workers is None else job.workers, job.id


def _last(sizes: Iterable[int], count: int) -> list[int]:
    """How many of the last `count` workers belong to each gang, where there are any.

    >>> _last([3, 3, 3], 4)
    [1, 3]
    """
    pieces = []
    for size in reversed(list(sizes)):
        pieces.append(min(size, count))
        count -= pieces[-1]
    return [piece for piece in reversed(pieces) if piece]


def place(machines: Machines, each: Amount, workers: int) -> tuple[Machines, int]:
    """Fills the tightest machines first, those without free GPUs before all; also how many found no place."""
    taken: dict[str, int] = {}
    for machine in sorted(machines, key=_tightness):
        if count := min(machine.free.holds(each), workers):
            taken[machine.id] = count
            workers -= count
    return tuple(_less(m, each * taken[m.id]) if m.id in taken else m for m in machines), workers


def _less(machine: Machine, amount: Amount) -> Machine:
    return replace(machine, free=machine.free - amount)


def room(machines: Sequence[Machine], each: Amount) -> int:
    """How many workers fit in what is free."""
    return sum(machine.free.holds(each) for machine in machines)


def total(amounts: Iterable[Amount]) -> Amount:
    return sum(amounts, Amount())


def _tightness(machine: Machine) -> tuple[int, int, str]:
    return machine.free.gpus, machine.free.cpus, machine.id


def _used_up(machines: Machines, each: Amount, homeless: int) -> Machines:
    """Books so many workers wherever anything is free, the roomiest machines first, in pieces if need be."""
    left = each * homeless
    after = {machine.id: machine for machine in machines}
    for machine in sorted(machines, key=_tightness, reverse=True):
        piece = Amount(cpus=min(machine.free.cpus, left.cpus), gpus=min(machine.free.gpus, left.gpus))
        after[machine.id] = replace(machine, free=machine.free - piece)
        left -= piece
    return tuple(after.values())
