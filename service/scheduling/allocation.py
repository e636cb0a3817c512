"""Hands out what is free to the jobs that wait: to each the least that it needs, then what is left. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

from service.jobs.job import Job
from service.scheduling import capacity
from service.scheduling.capacity import Demand, Machines


@dataclass(frozen=True, kw_only=True)
class Allocation:
    """What each job gets, by its id, and what the machines have left then, of what was `free` before.

    `blocked`: the first that has to wait, though the empty cluster would hold it. Nobody behind it gets any.
    """

    workers: Mapping[str, int]
    machines: Machines
    free: Machines
    blocked: Job | None = None

    def _with(self, job: Job, more: int) -> Allocation:
        machines, homeless = capacity.place(self.machines, Demand.of(job).each, more)
        assert not homeless
        workers = {**self.workers, job.id: self.workers.get(job.id, 0) + more}
        return replace(self, workers=workers, machines=machines)


def in_order(jobs: Iterable[Job]) -> list[Job]:
    """By priority, then by age: ids sort as their jobs were created."""
    return sorted(jobs, key=lambda job: (-job.priority, job.id))


def allocate_least(queue: Iterable[Job], machines: Machines, cluster: Machines) -> Allocation:
    """To each job in its turn the fewest workers that it can start with, until one of them does not fit."""
    order = list(filter(fitting(cluster), in_order(queue)))
    allocation = Allocation(workers={}, machines=machines, free=machines)
    # A job that was preempted has not given up its place: its least share stays its own while it starts
    # again, whoever came meanwhile. Otherwise it would be ended for jobs that it was only to make room for.
    for job in order:
        if job.preempted_at is not None and fits(job, allocation.machines):
            allocation = allocation._with(job, Demand.of(job).least)
    for job in order:
        if job.id in allocation.workers:
            continue
        if not fits(job, allocation.machines):
            return replace(allocation, blocked=job)
        allocation = allocation._with(job, Demand.of(job).least)
    return allocation


def allocate_rest(allocation: Allocation, queue: Sequence[Job]) -> Allocation:
    """To each job that has got workers, in its turn, as many more as it can have.

    They were dealt out bit by bit, but each gang is launched as a whole: it must fit that way too.
    """
    for job in in_order(queue):
        if has := allocation.workers.get(job.id):
            demand = Demand.of(job)
            most = demand.granted(has + capacity.room(allocation.machines, demand.each))
            more = (allocation._with(job, workers - has) for workers in range(most, has, -demand.step))
            allocation = next((larger for larger in more if _launchable(larger, queue)), allocation)
    return allocation


def _launchable(allocation: Allocation, queue: Iterable[Job]) -> bool:
    """Whether the gangs fit when they are placed whole, one after the other."""
    machines = allocation.free
    for job in in_order(queue):
        machines, homeless = capacity.place(machines, Demand.of(job).each, allocation.workers.get(job.id, 0))
        if homeless:
            return False
    return True


def fits(job: Job, machines: Machines) -> bool:
    """Whether its smallest gang does."""
    return _fits(Demand.of(job), machines)


def fitting(machines: Machines) -> Callable[[Job], bool]:
    """`fits` for a long queue: of its few kinds of gangs, each looks through the machines once."""
    known = cache(lambda demand: _fits(demand, machines))
    return lambda job: known(Demand.of(job))


def _fits(demand: Demand, machines: Machines) -> bool:
    return bool(demand.granted(capacity.room(machines, demand.each)))
