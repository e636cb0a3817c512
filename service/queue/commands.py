"""The commands cancel, pause, resume and resize, each one guarded statement on the job's row.

Race closed by all of them: the job starts, ends, is preempted or requeued at the moment of the request. The
statement decides by the state that it finds, so no command is lost.
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
    """Writes `values` to the job's row if it passes all `guards`.

    refusal: returns why a job does not pass and what to do instead; None if the command has nothing to do.
    """

    guards: Sequence[ColumnElement[bool]]
    values: Mapping[str, Any]
    refusal: Callable[[Job], str | None]


_NOT_CANCELLED = jobs.c.cancel_requested_at.is_(None)


def cancel(waited: str = "cancelled while it waited") -> Command:
    """Cancels a waiting job at once; marks an active one for the dispatcher to stop.

    waited: the reason of a job that waited.
    """
    now = literal(utc_now(), UtcDateTime)
    waits = jobs.c.state.not_in(ACTIVE)
    return Command(
        guards=[jobs.c.state.not_in(ENDED)],
        values={
            "state": case((waits, State.CANCELLED.value), else_=jobs.c.state),
            "reason": case((waits, waited), else_="cancelled, stops soon"),
            "finished_at": case((waits, now), else_=jobs.c.finished_at),
            "cancel_requested_at": func.coalesce(jobs.c.cancel_requested_at, now),
        },
        refusal=lambda job: None if job.state is State.CANCELLED else f"{_ended(job)} already",
    )


def pause(waited: str = "paused while it waited") -> Command:
    """Pauses a waiting job at once; marks an active one for the dispatcher to stop.

    waited: the reason of a job that waited.
    """
    waits = jobs.c.state == State.QUEUED
    return Command(
        guards=[jobs.c.state.not_in({*ENDED, State.PAUSED, State.PAUSING}), _NOT_CANCELLED],
        values={
            "state": case((waits, State.PAUSED.value), else_=State.PAUSING.value),
            "reason": case((waits, waited), else_="asked to stop, then pauses"),
            "preempted_at": None,
        },
        refusal=lambda job: _refusal_if_over(job, "there is nothing to pause"),
    )


def resume() -> Command:
    """Puts a paused job back into the queue. Does nothing to a job that is not paused."""

    def refusal(job: Job) -> str | None:
        if why := _refusal_if_over(job, "there is nothing to resume"):
            return why
        pausing = "is still pausing, its attempt saves a checkpoint: resume it again once it is paused"
        return pausing if job.state is State.PAUSING else None

    return Command(
        guards=[jobs.c.state == State.PAUSED],
        values={"state": State.QUEUED, "reason": "resumed; not scheduled yet"},
        refusal=refusal,
    )


def resize(workers: int) -> Command:
    """Sets the number of workers that the job has from the next preemption or start on."""
    return Command(
        guards=[jobs.c.state.not_in(ENDED), _NOT_CANCELLED],
        values={"wanted_workers": workers, "grows_after": None},
        refusal=lambda job: _refusal_if_over(job, "its workers cannot change any more"),
    )


def resize_problem(job: Job, workers: int) -> Problem | None:
    """Returns why the job's spec does not allow this number of workers; None if it does."""
    asked = job.resources
    if not job.elastic:
        message = (
            f"this job has a fixed number of workers, {asked.max_workers}; a job that can be resized is "
            "submitted with resources.workers: {min: ..., max: ...}"
        )
    elif not asked.min_workers <= workers <= asked.max_workers:
        message = f"{workers} is not within resources.workers, {asked.min_workers} to {asked.max_workers}"
    elif workers % job.worker_step:
        message = f"{workers} workers cannot be cut into groups of {job.worker_step} (norm.group)"
    else:
        return None
    return Problem(key="workers", message=message)


def _refusal_if_over(job: Job, consequence: str) -> str | None:
    if job.state.ended:
        return f"{_ended(job)} already: {consequence}"
    return f"is being cancelled: {consequence}" if job.cancel_requested_at is not None else None


def _ended(job: Job) -> str:
    return f"was {job.state}" if job.state is State.CANCELLED else f"has {job.state}"
