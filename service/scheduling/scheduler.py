"""The scheduler: which jobs start and with how many workers, which are preempted, why others wait. Pure.

Gang scheduling: a job starts with all its workers or not at all. The order is strict (priority, then age): a
job that does not fit yet blocks those behind it, because a stream of small jobs would starve it otherwise. A
job that does not fit even into the empty cluster blocks no other, and neither does one that its sweep holds
back.

Jobs that ask for a range of workers give way. They start with their minimum while others wait, and running
ones shrink for a job of the same or a higher priority (preemption). Workers that no job waits for are
distributed among them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType

from service.backends.cluster import Node
from service.jobs.job import Job, new_job, utc_now
from service.jobs.sweep import SweepLimits
from service.scheduling import capacity, preemption, reasons, sweep_limits
from service.scheduling.allocation import Allocation, allocate_least, allocate_rest, fitting, in_order
from service.scheduling.capacity import Demand, Machines
from service.scheduling.preemption import Preempt
from training.spec import Spec


@dataclass(frozen=True, kw_only=True)
class Start:
    """Launch this job with this number of workers."""

    job_id: str
    workers: int


@dataclass(frozen=True, kw_only=True)
class Wait:
    """This job waits. `never`: it cannot start unless machines are added."""

    job_id: str
    reason: str
    never: bool = False


Decision = Start | Wait | Preempt
_UNKNOWN: Mapping[str, float] = MappingProxyType({})
_NO_SWEEPS: Mapping[str, SweepLimits] = MappingProxyType({})


def schedule(
    queue: Sequence[Job],
    active: Sequence[Job],
    nodes: Sequence[Node],
    *,
    now: float,
    seconds_left: Mapping[str, float] = _UNKNOWN,
    sweeps: Mapping[str, SweepLimits] = _NO_SWEEPS,
) -> list[Decision]:
    """Returns a decision for every queued job, in scheduling order, then the preemptions of active jobs.

    active: the jobs that hold workers. nodes: the machines with their full capacity. now: by the queue's
    clock (`SchedulerRow.clock`). seconds_left: the remaining time of active jobs by id, where it is known.
    sweeps: the limits of the jobs' sweeps by id; a job that they hold back blocks no other. The same input
    gives the same result.
    """
    cluster = capacity.empty(nodes)
    held = sweep_limits.held(queue, active, sweeps, fits_ever=fitting(cluster))
    every, queue = queue, [job for job in queue if job.id not in held]
    preempts = preemption.resized(active)
    active = preemption.preempted(active, [preempt.job_id for preempt in preempts])
    allocation = allocate_least(queue, capacity.occupied(nodes, active), cluster)
    blocked = allocation.blocked
    room = [] if blocked is None else preemption.make_room(blocked, queue, active, nodes, seconds_left)
    if blocked is None or room is None:
        allocation = allocate_rest(allocation, queue)  # a blocked job could not use the rest
    elif room:
        preempts += [Preempt(job_id=job.id, reason=f"makes room for job {blocked.id}") for job in room]
    if not any(map(fitting(cluster), queue)):
        preempts += preemption.grows(active, nodes, now=now, seconds_left=seconds_left)
    makes_room = blocked is not None and room is not None
    decisions = {each.job_id: each for each in _decisions(queue, allocation, cluster, makes_room=makes_room)}
    decisions |= {job_id: Wait(job_id=job_id, reason=reason) for job_id, reason in held.items()}
    return [*(decisions[job.id] for job in in_order(every)), *preempts]


def standing(
    active: Sequence[Job], *, now: float, seconds_left: Mapping[str, float] = _UNKNOWN
) -> tuple[tuple[object, ...], ...]:
    """Returns what `schedule` depends on of the active jobs: it decides the same as long as this is equal."""
    return tuple(
        (
            *(job.id, job.state, job.attempt, job.priority, job.workers, job.wanted_workers),
            *(job.preempted_at, job.cancel_requested_at),
            *(preemption.may_grow(job, now), preemption.nearly_done(job, seconds_left)),
        )
        for job in active
    )


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What would happen to a job submitted now. `workers`: granted at once, or else its minimum."""

    fits_now: bool
    fits_ever: bool
    workers: int
    reason: str


def forecast(
    spec: Spec,
    queue: Sequence[Job],
    active: Sequence[Job],
    nodes: Sequence[Node],
    *,
    now: float,
    sweeps: Mapping[str, SweepLimits] = _NO_SWEEPS,
) -> Forecast:
    """Returns `schedule`'s decision for a job that does not exist yet."""
    job = new_job(spec, created_at=utc_now())
    decisions = schedule([*queue, job], active, nodes, now=now, sweeps=sweeps)
    (decision,) = (each for each in decisions if each.job_id == job.id)
    if isinstance(decision, Start):
        return Forecast(fits_now=True, fits_ever=True, workers=decision.workers, reason="")
    least, never = spec.resources.min_workers, isinstance(decision, Wait) and decision.never
    return Forecast(fits_now=False, fits_ever=not never, workers=least, reason=decision.reason)


def _decisions(
    queue: Sequence[Job], allocation: Allocation, cluster: Machines, *, makes_room: bool
) -> list[Start | Wait]:
    """Returns the allocation as decisions with reasons."""
    decisions: list[Start | Wait] = []
    ahead = 0
    fits_ever, fits_now = fitting(cluster), fitting(allocation.machines)
    never = cache(lambda demand: reasons.never(demand, cluster))
    not_yet = cache(lambda demand: reasons.not_yet(demand, allocation.machines))
    for job in in_order(queue):
        if workers := allocation.workers.get(job.id):
            decisions.append(Start(job_id=job.id, workers=workers))
        elif not fits_ever(job):
            decisions.append(Wait(job_id=job.id, reason=never(Demand.of(job)), never=True))
        else:
            others = reasons.count(ahead, "job")
            if fits_now(job):
                reason = f"waits behind {others}"
            else:
                reason = not_yet(Demand.of(job)) + (f"; {others} ahead" if ahead else "")
            if makes_room and job is allocation.blocked:
                reason += "; others are making room for it"
            decisions.append(Wait(job_id=job.id, reason=reason))
            ahead += 1
    return decisions
