"""Which running jobs are stopped to start again with another number of workers. Pure.

Only jobs that ask for a range of workers are, and a job never loses more than what it has above its least.
The result of a job does not depend on its workers, so all that this costs is the time of a restart.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from itertools import chain, combinations, islice

from service.backends.cluster import Node
from service.jobs.job import Job, State
from service.scheduling import capacity
from service.scheduling.allocation import allocate_least, in_order
from service.scheduling.capacity import Demand

GROWS_EVERY = timedelta(minutes=10)
"""An attempt is not stopped sooner than that only to get more workers."""

REAL_GAIN = 1.25
"""At least so many times the workers it has: less would not pay for the restart."""

NEARLY_DONE_SECONDS = 120.0
"""A job that needs no longer than that is left alone."""

_TRIES = 200


@dataclass(frozen=True, kw_only=True)
class Preempt:
    """Stop this job, which saves itself and goes back to the queue, to start again with other workers."""

    job_id: str
    reason: str


def resized(active: Iterable[Job]) -> list[Preempt]:
    """Jobs that run with more workers than somebody has asked for since."""
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
    """The fewest jobs that have to shrink so that `head`, which does not fit now, does; None: it cannot be.

    Of equally many, those of the lowest priority, then the youngest. None of them: it is going to fit anyway,
    once all that have been asked to stop have stopped.
    """

    def helps(shrinking: Sequence[Job]) -> bool:
        return _fits_after(head, queue, active, nodes, shrinking)

    if helps([]):
        return []
    able = [
        job
        for job in reversed(in_order(active))
        if job.priority <= head.priority
        and _may_stop(job)
        and _has(job) > Demand.of(job).least
        and not _nearly_done(job, seconds_left)
    ]
    if not able or not helps(able):
        return None
    return list(next(chosen for chosen in _choices(able) if helps(chosen)))


def grows(
    active: Sequence[Job], nodes: Sequence[Node], *, now: datetime, seconds_left: Mapping[str, float]
) -> list[Preempt]:
    """The first job that would really gain from a restart, if nobody waits. One at a time: what the next
    could gain is known once it has started again.
    """
    if any(job.state is State.PREEMPTING for job in active):
        return []
    for job in in_order(active):
        ready = job.grows_after is None or job.grows_after <= now
        # Who asked for a number of workers gets it, if only for the last minute.
        left_alone = not job.wanted_workers and _nearly_done(job, seconds_left)
        if ready and job.elastic and _may_stop(job) and not left_alone:
            possible = _possible(job, active, nodes)
            # What somebody has asked for is worth a restart, however little it is.
            least = _has(job) + 1 if job.wanted_workers else REAL_GAIN * _has(job)
            if possible >= least:
                return [Preempt(job_id=job.id, reason=f"grows from {job.workers} to {_workers(possible)}")]
    return []


def preempted(active: Sequence[Job], jobs: Iterable[str], *, now: datetime) -> list[Job]:
    """The active jobs as they are once these of them have been asked to stop."""
    stopping = set(jobs)
    return [
        replace(job, state=State.PREEMPTING, preempted_at=now) if job.id in stopping else job
        for job in active
    ]


def _fits_after(
    head: Job, queue: Sequence[Job], active: Sequence[Job], nodes: Sequence[Node], shrinking: Sequence[Job]
) -> bool:
    """Whether `head` gets its workers when these, and all that stop already, have stopped.

    By the very rules by which workers are going to be dealt out then: whoever is stopped for nothing would
    be stopped for nothing again.
    """
    going = {job.id for job in shrinking} | {job.id for job in active if job.stopping}
    staying = [job for job in active if job.id not in going]
    back = [replace(job, preempted_at=job.created_at) for job in shrinking]
    back += [job for job in active if job.state is State.PREEMPTING and job.cancel_requested_at is None]
    allocation = allocate_least([*queue, *back], capacity.occupied(nodes, staying), capacity.empty(nodes))
    return head.id in allocation.workers


def _choices(able: Sequence[Job]) -> Iterator[Sequence[Job]]:
    """The fewest first; where there are too many ways to choose, the lowest priorities and youngest."""
    every = chain.from_iterable(combinations(able, count) for count in range(1, len(able) + 1))
    return chain(islice(every, _TRIES), (able[:count] for count in range(1, len(able) + 1)))


def _possible(job: Job, active: Sequence[Job], nodes: Sequence[Node]) -> int:
    """With how many workers it would start now."""
    demand = Demand.of(job)
    machines = capacity.occupied(nodes, [other for other in active if other.id != job.id])
    return demand.granted(capacity.room(machines, demand.each))


def _may_stop(job: Job) -> bool:
    """One that starts is not stopped: whatever happens in the queue, each attempt makes its way."""
    return job.state is State.RUNNING and not job.stopping


def _nearly_done(job: Job, seconds_left: Mapping[str, float]) -> bool:
    return seconds_left.get(job.id, NEARLY_DONE_SECONDS) < NEARLY_DONE_SECONDS


def _has(job: Job) -> int:
    assert job.workers is not None
    return job.workers


def _workers(number: int) -> str:
    return f"{number} worker{'' if number == 1 else 's'}"
