"""What people may ask of a job: cancel, pause, resume, resize. Each is one guarded statement on its row.

Race closed by all of them: the job starts, ends, is preempted or put back in the moment of the request. The
statement decides by the state that it finds, so no request gets lost.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, case, func, literal

from service.jobs.job import ACTIVE, ENDED, Job, State, utc_now
from service.queue.tables import UtcDateTime, jobs
from training.spec import Problem


@dataclass(frozen=True, kw_only=True)
class Command:
    """`values` for a row that passes the `guards`.

    `refusal`: of a job that did not pass, why not, and the way out; None if it is as wished already.
    """

    guards: Sequence[ColumnElement[bool]]
    values: Mapping[str, Any]
    refusal: Callable[[Job], str | None]


_NOT_CANCELLED = jobs.c.cancel_requested_at.is_(None)


def cancel() -> Command:
    """Ends a job that waits; marks one that is active, for the dispatcher to stop."""
    now = literal(utc_now(), UtcDateTime)
    waits = jobs.c.state.not_in(ACTIVE)
    return Command(
        guards=[jobs.c.state.not_in(ENDED)],
        values={
            "state": case((waits, State.CANCELLED.value), else_=jobs.c.state),
            "reason": case((waits, "cancelled while it waited"), else_="cancelled, stops soon"),
            "finished_at": case((waits, now), else_=jobs.c.finished_at),
            "cancel_requested_at": func.coalesce(jobs.c.cancel_requested_at, now),
        },
        refusal=lambda job: None if job.state is State.CANCELLED else f"{_ended(job)} already",
    )


def pause() -> Command:
    """Holds a job that waits; has the dispatcher stop the attempt of one that is active."""
    waits = jobs.c.state == State.QUEUED
    return Command(
        guards=[jobs.c.state.not_in({*ENDED, State.PAUSED, State.PAUSING}), _NOT_CANCELLED],
        values={
            "state": case((waits, State.PAUSED.value), else_=State.PAUSING.value),
            "reason": case((waits, "paused while it waited"), else_="saves itself, then pauses"),
            "preempted_at": None,
        },
        refusal=lambda job: _over(job, "there is nothing to pause"),
    )


def resume() -> Command:
    """Puts a paused job back into the queue. One that is not paused goes on as it is."""

    def refusal(job: Job) -> str | None:
        if why := _over(job, "there is nothing to resume"):
            return why
        pausing = "is still pausing, its attempt saves itself: resume it again once it is paused"
        return pausing if job.state is State.PAUSING else None

    return Command(
        guards=[jobs.c.state == State.PAUSED],
        values={"state": State.QUEUED, "reason": "resumed; not scheduled yet"},
        refusal=refusal,
    )


def resize(workers: int) -> Command:
    """Has a job go on with so many workers, and no more, as soon as the scheduler can see to it."""
    return Command(
        guards=[jobs.c.state.not_in(ENDED), _NOT_CANCELLED],
        values={"wanted_workers": workers, "grows_after": utc_now()},
        refusal=lambda job: _over(job, "its workers cannot change any more"),
    )


def resize_problem(job: Job, workers: int) -> Problem | None:
    """Why the job's spec does not allow so many workers."""
    asked = job.resources
    if not job.elastic:
        message = (
            f"this job has {asked.max_workers}, no more and no less; to be resized it has to be submitted "
            "with resources.workers: {min: ..., max: ...}"
        )
    elif not asked.min_workers <= workers <= asked.max_workers:
        message = f"{workers} is not within resources.workers, {asked.min_workers} to {asked.max_workers}"
    elif workers % job.worker_step:
        message = f"{workers} workers cannot be cut into groups of {job.worker_step} (norm.group)"
    else:
        return None
    return Problem(key="workers", message=message)


def _over(job: Job, so: str) -> str | None:
    if job.state.ended:
        return f"{_ended(job)} already: {so}"
    return f"is being cancelled: {so}" if job.cancel_requested_at is not None else None


def _ended(job: Job) -> str:
    return f"was {job.state}" if job.state is State.CANCELLED else f"has {job.state}"
