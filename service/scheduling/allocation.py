"""Allocates free workers to waiting jobs: first the minimum each needs, then what is left. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

from service.jobs.job import Job
from service.scheduling import capacity
from service.scheduling.capacity import Demand, Machines


@dataclass(frozen=True, kw_only=True)
class Allocation:
    """The workers granted to each job.

    workers: the number of workers, by job id. free, machines: the machines before and after the allocation.
    blocked: the first job that has to wait although it fits into the empty cluster; no job behind it gets
    workers. None if no job is blocked.
    """

    workers: Mapping[str, int]
    machines: Machines
    free: Machines
    blocked: Job | None = None

    def _with(self, job: Job, more: int) -> Allocation:
        machines, unplaced = capacity.place(self.machines, Demand.of(job).worker, more)
        assert not unplaced
        workers = {**self.workers, job.id: self.workers.get(job.id, 0) + more}
        return replace(self, workers=workers, machines=machines)


def in_order(jobs: Iterable[Job]) -> list[Job]:
    """Returns the jobs by priority, then by age: ids sort by creation time."""
    return sorted(jobs, key=lambda job: (-job.priority, job.id))


def allocate_least(queue: Iterable[Job], machines: Machines, cluster: Machines) -> Allocation:
    """Gives each job, in scheduling order, the minimum number of workers it can start with, until one does
    not fit.
    """
    order = list(filter(fitting(cluster), in_order(queue)))
    allocation = Allocation(workers={}, machines=machines, free=machines)
    # A preempted job keeps its minimum share while it restarts, even against jobs with a higher priority.
    # Otherwise it would lose everything to jobs for which it only had to make room.
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
    """Gives each job that has workers, in scheduling order, as many more as it can use.

    Workers are allocated in two passes, but each gang is launched as a whole, so it must fit that way too.
    """
    for job in in_order(queue):
        if has := allocation.workers.get(job.id):
            demand = Demand.of(job)
            most = demand.granted(has + capacity.room(allocation.machines, demand.worker))
            more = (allocation._with(job, workers - has) for workers in range(most, has, -demand.step))
            allocation = next((larger for larger in more if _launchable(larger, queue)), allocation)
    return allocation


def _launchable(allocation: Allocation, queue: Iterable[Job]) -> bool:
    """Returns whether the gangs fit when each is placed as a whole, one after the other."""
    machines = allocation.free
    for job in in_order(queue):
        machines, unplaced = capacity.place(
            machines, Demand.of(job).worker, allocation.workers.get(job.id, 0)
        )
        if unplaced:
            return False
    return True


def fits(job: Job, machines: Machines) -> bool:
    """Returns whether the job's smallest gang fits."""
    return _fits(Demand.of(job), machines)


def fitting(machines: Machines) -> Callable[[Job], bool]:
    """Returns `fits` for these machines, cached by demand: a long queue has few different demands."""
    cached = cache(lambda demand: _fits(demand, machines))
    return lambda job: cached(Demand.of(job))


def _fits(demand: Demand, machines: Machines) -> bool:
    return bool(demand.granted(capacity.room(machines, demand.worker)))
