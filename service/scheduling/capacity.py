"""Capacity arithmetic: how many equal workers fit on which machines. Pure.

CPUs and GPUs are integers in ten-thousandths (Ray's own resolution), so 3 × 0.3333 fits into 1 and sums have
no rounding error.
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
from training.spec import Resources

UNITS = 10_000
UNLIMITED = sys.maxsize


@dataclass(frozen=True, kw_only=True)
class Amount:
    """CPUs and GPUs in units of 1/10,000, memory in bytes."""

    cpus: int = 0
    gpus: int = 0
    memory: int = 0

    @classmethod
    def of(cls, cpus: float, gpus: float, memory: int = 0) -> Self:
        return cls(cpus=_units(cpus), gpus=_units(gpus), memory=memory)

    def __add__(self, other: Amount) -> Amount:
        return Amount(
            cpus=self.cpus + other.cpus, gpus=self.gpus + other.gpus, memory=self.memory + other.memory
        )

    def __sub__(self, other: Amount) -> Amount:
        return self + other * -1

    def __mul__(self, times: int) -> Amount:
        return Amount(cpus=self.cpus * times, gpus=self.gpus * times, memory=self.memory * times)

    def holds(self, each: Amount) -> int:
        """Returns how many times `each` fits."""
        return min(
            _times(self.cpus, each.cpus), _times(self.gpus, each.gpus), _times(self.memory, each.memory)
        )

    def at_most(self, other: Amount) -> Amount:
        """Returns the smaller of the two, resource by resource."""
        return Amount(
            cpus=min(self.cpus, other.cpus),
            gpus=min(self.gpus, other.gpus),
            memory=min(self.memory, other.memory),
        )


Labels = frozenset[tuple[str, str]]


@dataclass(frozen=True, kw_only=True)
class Worker:
    """What each worker of a job needs: an amount, on a machine with these labels."""

    amount: Amount
    labels: Labels = frozenset()

    @classmethod
    def of(cls, resources: Resources) -> Self:
        amount = Amount.of(
            resources.cpus_per_worker, resources.gpus_per_worker, resources.memory_per_worker or 0
        )
        return cls(amount=amount, labels=frozenset(resources.labels.items()))


@lru_cache(maxsize=1024)  # jobs ask for few different amounts, which are converted in every round
def _units(value: float) -> int:
    """Returns `value` in units, at least one for any positive value; exact for every float."""
    return max(round(Fraction(value) * UNITS), 1) if value > 0 else 0


def _times(free: int, each: int) -> int:
    return UNLIMITED if each == 0 else max(free, 0) // each


@dataclass(frozen=True, kw_only=True)
class Demand:
    """What a job asks for: `least` to `most` equal workers in multiples of `step`."""

    least: int
    most: int
    step: int
    worker: Worker

    @property
    def each(self) -> Amount:
        """What each worker takes from its machine."""
        return self.worker.amount

    @classmethod
    def of(cls, job: Job) -> Self:
        resources = job.resources
        return cls(
            least=resources.min_workers,
            most=job.most_workers,
            step=job.worker_step,
            worker=Worker.of(resources),
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
    labels: Labels = frozenset()

    def room(self, worker: Worker) -> int:
        """Returns how many such workers fit into what is free."""
        return self.free.holds(worker.amount) if worker.labels <= self.labels else 0


Machines = tuple[Machine, ...]


def empty(nodes: Iterable[Node]) -> Machines:
    """Returns the machines with nothing on them, sorted by id."""
    machines = []
    for node in sorted(nodes, key=lambda node: node.id):
        amount = Amount.of(node.cpus, node.gpus, node.memory)
        labels = frozenset(node.labels.items())
        machines.append(Machine(id=node.id, total=amount, free=amount, labels=labels))
    return tuple(machines)


def occupied(nodes: Iterable[Node], active: Iterable[Job]) -> Machines:
    """Returns the machines with the active jobs' workers on them: first those that need labels, the largest
    first.

    This is an estimate, because Ray decides where workers really are. Workers that fit nowhere (a machine was
    lost, or Ray packed them better) take free amounts in pieces, so the total left is never too large: a job
    may wait a little longer, but none is started without room.
    """
    machines = empty(nodes)
    gangs = sorted(map(_held, active), key=_placing_order)
    for worker, alike in groupby(gangs, key=lambda gang: gang[0]):
        sizes = [workers for _, workers, _ in alike]
        # Gangs of equal workers are placed together. The result is the same as one by one, and with a
        # thousand jobs and machines, visiting every machine for every job takes minutes.
        machines, unplaced = place(machines, worker, sum(sizes))
        for count in _last(sizes, unplaced):
            machines = _take_in_pieces(machines, worker, count)
    return machines


def _held(job: Job) -> tuple[Worker, int, str]:
    demand = Demand.of(job)
    return demand.worker, demand.least if job.workers is None else job.workers, job.id


def _placing_order(gang: tuple[Worker, int, str]) -> tuple[object, ...]:
    worker, _, job_id = gang
    amount = worker.amount
    return not worker.labels, -amount.gpus, -amount.cpus, -amount.memory, sorted(worker.labels), job_id


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


def place(machines: Machines, worker: Worker, workers: int) -> tuple[Machines, int]:
    """Places workers on the machines with the least free, those without free GPUs first.

    Returns the machines afterwards and the number of workers that did not fit.
    """
    taken: dict[str, int] = {}
    for machine in sorted(machines, key=_tightness):
        if count := min(machine.room(worker), workers):
            taken[machine.id] = count
            workers -= count
    return tuple(_less(m, worker.amount * taken[m.id]) if m.id in taken else m for m in machines), workers


def _less(machine: Machine, amount: Amount) -> Machine:
    return replace(machine, free=machine.free - amount)


def room(machines: Sequence[Machine], worker: Worker) -> int:
    """Returns how many such workers fit into what is free."""
    return sum(machine.room(worker) for machine in machines)


def total(amounts: Iterable[Amount]) -> Amount:
    return sum(amounts, Amount())


def _tightness(machine: Machine) -> tuple[int, int, int, str]:
    return machine.free.gpus, machine.free.cpus, machine.free.memory, machine.id


def _take_in_pieces(machines: Machines, worker: Worker, unplaced: int) -> Machines:
    """Takes the amount of `unplaced` workers wherever anything is free, the machines with most free first."""
    left = worker.amount * unplaced
    after = {machine.id: machine for machine in machines}
    for machine in sorted(machines, key=lambda m: (worker.labels <= m.labels, _tightness(m)), reverse=True):
        piece = machine.free.at_most(left)
        after[machine.id] = replace(machine, free=machine.free - piece)
        left -= piece
    return tuple(after.values())
