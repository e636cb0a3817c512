"""Preemption: which running jobs stop and restart with another number of workers. Pure.

Only jobs that ask for a range of workers are preempted, and a job never gets fewer than its minimum.
The result of a job does not depend on its number of workers, so a preemption costs only the restart.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, combinations, islice

from service.backends.cluster import Node
from service.jobs.job import Job, State
from service.scheduling import capacity
from service.scheduling.allocation import allocate_least, in_order
from service.scheduling.capacity import Demand

GROWS_EVERY = 600.0
"""Minimum time in seconds between two preemptions that only give a job more workers."""

REAL_GAIN = 1.25
"""A job grows only to at least this many times its present workers: less does not pay for a restart."""

NEARLY_DONE_SECONDS = 120.0
"""A job that needs less time than this is not preempted."""

_TRIES = 200  # combinations of jobs to try, fewest jobs first


@dataclass(frozen=True, kw_only=True)
class Preempt:
    """Stop this job: it saves a checkpoint and returns to the queue, to restart with other workers."""

    job_id: str
    reason: str


def resized(active: Iterable[Job]) -> list[Preempt]:
    """Preempts the jobs that run with more workers than their last resize allows."""
    return [
        Preempt(job_id=job.id, reason=f"resizes from {job.workers} to {_workers(job.most_workers)}")
        for job in active
        if _may_stop(job) and _has(job) > job.most_workers
    ]


def make_room(
    head: Job,
    queue: Sequence[Job],
    active: Sequence[Job],
    nodes: Sequence[Node],
    seconds_left: Mapping[str, float],
) -> list[Job] | None:
    """Returns the fewest jobs that have to shrink so that `head`, which does not fit now, fits.

    Among equally many: those of the lowest priority, then the youngest. An empty list: `head` fits as soon as
    the jobs that are stopping already have stopped. None: shrinking jobs does not help.
    """

    def helps(shrinking: Sequence[Job]) -> bool:
        return _fits_after(head, queue, active, nodes, shrinking)

    if helps([]):
        return []
    candidates = [
        job
        for job in reversed(in_order(active))
        if job.priority <= head.priority
        and _may_stop(job)
        and _has(job) > Demand.of(job).least
        and not nearly_done(job, seconds_left)
    ]
    if not candidates or not helps(candidates):
        return None
    return list(next(chosen for chosen in _choices(candidates) if helps(chosen)))


def grows(
    active: Sequence[Job], nodes: Sequence[Node], *, now: float, seconds_left: Mapping[str, float]
) -> list[Preempt]:
    """Preempts the first job that would gain enough workers from a restart. Called when no job waits.

    One at a time: what the next job could gain is known only after the restart.
    """
    if any(job.state is State.PREEMPTING for job in active):
        return []
    for job in in_order(active):
        # A resize is carried out even if the job is nearly done.
        left_alone = not job.wanted_workers and nearly_done(job, seconds_left)
        if may_grow(job, now) and job.elastic and _may_stop(job) and not left_alone:
            possible = _possible(job, active, nodes)
            # A resize is worth a restart even for one more worker.
            least = _has(job) + 1 if job.wanted_workers else REAL_GAIN * _has(job)
            if possible >= least:
                return [Preempt(job_id=job.id, reason=f"grows from {job.workers} to {_workers(possible)}")]
    return []


def preempted(active: Sequence[Job], jobs: Iterable[str]) -> list[Job]:
    """Returns the active jobs, with those in `jobs` marked as preempted."""
    stopping = set(jobs)
    return [
        replace(job, state=State.PREEMPTING, preempted_at=job.created_at) if job.id in stopping else job
        for job in active
    ]


def _fits_after(
    head: Job, queue: Sequence[Job], active: Sequence[Job], nodes: Sequence[Node], shrinking: Sequence[Job]
) -> bool:
    """Returns whether `head` gets its workers once `shrinking` and the jobs already stopping have stopped,
    and each of `shrinking` its minimum.

    Uses the same allocation that runs then. With other rules a job could be preempted in vain, and again in
    every round.
    """
    leaving = {job.id for job in shrinking} | {job.id for job in active if job.stopping}
    staying = [job for job in active if job.id not in leaving]
    requeued = [replace(job, preempted_at=job.created_at) for job in shrinking]
    requeued += [job for job in active if job.state is State.PREEMPTING and job.cancel_requested_at is None]
    allocation = allocate_least([*queue, *requeued], capacity.occupied(nodes, staying), capacity.empty(nodes))
    return {head.id, *(job.id for job in shrinking)} <= allocation.workers.keys()


def _choices(candidates: Sequence[Job]) -> Iterator[Sequence[Job]]:
    """Yields combinations, fewest jobs first; after `_TRIES`, only prefixes: lowest priority and youngest."""
    every = chain.from_iterable(combinations(candidates, count) for count in range(1, len(candidates) + 1))
    return chain(islice(every, _TRIES), (candidates[:count] for count in range(1, len(candidates) + 1)))


def _possible(job: Job, active: Sequence[Job], nodes: Sequence[Node]) -> int:
    """Returns the number of workers with which the job would start now."""
    demand = Demand.of(job)
    machines = capacity.occupied(nodes, [other for other in active if other.id != job.id])
    return demand.granted(capacity.room(machines, demand.worker))


def _may_stop(job: Job) -> bool:
    """Returns whether the job may be preempted. A starting job may not: every attempt gets to train."""
    return job.state is State.RUNNING and not job.stopping


def may_grow(job: Job, now: float) -> bool:
    """Returns whether its start is long enough ago for a preemption that only gives it more workers."""
    return job.grows_after is None or job.grows_after <= now


def nearly_done(job: Job, seconds_left: Mapping[str, float]) -> bool:
    """Returns whether the job is known to end too soon for a preemption to pay."""
    return seconds_left.get(job.id, NEARLY_DONE_SECONDS) < NEARLY_DONE_SECONDS


def _has(job: Job) -> int:
    assert job.workers is not None
    return job.workers


def _workers(number: int) -> str:
    return f"{number} worker{'' if number == 1 else 's'}"
