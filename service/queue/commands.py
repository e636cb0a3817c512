"""The commands cancel, pause, resume, resize, retry, priority, each one guarded statement on the job's row.

Race closed by all of them: the job starts, ends, is preempted or requeued at the moment of the request. The
statement decides by the state that it finds, so no command is lost.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, case, func, literal

from service.jobs.job import ACTIVE, ENDED, Job, Removed, State, utc_now
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


def given(command: str, by: str, **more: Any) -> dict[str, Any]:
    """Returns the value of `last_command`. by: the user who gave it; "" if that is not known."""
    return {"command": command, "by": by, "at": utc_now().isoformat(), **more}


def cancel(waited: str = "cancelled while it waited", *, by: str = "") -> Command:
    """Cancels a waiting job at once; marks an active one for the dispatcher to stop.

    waited: the reason of a job that waited. by: the user who asked for it.
    """
    now = literal(utc_now(), UtcDateTime)
    command = literal(given("cancel", by), jobs.c.last_command.type)
    waits = jobs.c.state.not_in(ACTIVE)
    return Command(
        guards=[jobs.c.state.not_in(ENDED)],
        values={
            "state": case((waits, State.CANCELLED.value), else_=jobs.c.state),
            "expected": None,
            "reason": case((waits, waited), else_="cancelled, stops soon"),
            "finished_at": case((waits, now), else_=jobs.c.finished_at),
            "cancel_requested_at": func.coalesce(jobs.c.cancel_requested_at, now),
            "ended_by": case((waits, by), else_=jobs.c.ended_by),
            # The run of a job that was retried has ended as it did before.
            "archived_at": None,
            "last_command": case((_NOT_CANCELLED, command), else_=jobs.c.last_command),
        },
        refusal=lambda job: None if job.state is State.CANCELLED else f"{_ended(job)} already",
    )


def pause(waited: str = "paused while it waited", *, by: str = "") -> Command:
    """Pauses a waiting job at once; marks an active one for the dispatcher to stop.

    waited: the reason of a job that waited. by: the user who asked for it.
    """
    waits = jobs.c.state == State.QUEUED
    return Command(
        guards=[jobs.c.state.not_in({*ENDED, State.PAUSED, State.PAUSING}), _NOT_CANCELLED],
        values={
            "state": case((waits, State.PAUSED.value), else_=State.PAUSING.value),
            "expected": None,
            "reason": case((waits, waited), else_="asked to stop, then pauses"),
            "preempted_at": None,
            "last_command": given("pause", by),
        },
        refusal=lambda job: _refusal_if_over(job, "there is nothing to pause"),
    )


def resume(*, by: str = "") -> Command:
    """Puts a paused job back into the queue. Does nothing to a job that is not paused."""

    def refusal(job: Job) -> str | None:
        if why := _refusal_if_over(job, "there is nothing to resume"):
            return why
        pausing = "is still pausing, its attempt saves a checkpoint: resume it again once it is paused"
        return pausing if job.state is State.PAUSING else None

    return Command(
        guards=[jobs.c.state == State.PAUSED],
        values={
            "state": State.QUEUED,
            "reason": "resumed; not scheduled yet",
            "last_command": given("resume", by),
        },
        refusal=refusal,
    )


def resize(workers: int, *, by: str = "") -> Command:
    """Sets the number of workers that the job has from the next preemption or start on."""
    return Command(
        guards=[jobs.c.state.not_in(ENDED), _NOT_CANCELLED],
        values={
            "wanted_workers": workers,
            "grows_after": None,
            "last_command": given("resize", by, workers=workers),
        },
        refusal=lambda job: _refusal_if_over(job, "its workers cannot change any more"),
    )


def set_priority(priority: int, *, by: str = "") -> Command:
    """Sets the priority that the job has from now on, waiting or active."""
    return Command(
        guards=[jobs.c.state.not_in(ENDED), _NOT_CANCELLED],
        values={"priority": priority, "last_command": given("priority", by, priority=priority)},
        refusal=lambda job: _refusal_if_over(job, "its priority does not matter any more"),
    )


RETRIED = frozenset({State.FAILED, State.CANCELLED})
"""States of which a job can be retried."""


def retry(*, from_scratch: bool = False, by: str = "") -> Command:
    """Puts a failed or cancelled job back into the queue. Does nothing to a job that has not ended.

    from_scratch: it begins from step 0, in a new run; otherwise it resumes from its last checkpoint.
    """
    lacks = Removed.NOTHING if from_scratch else Removed.CHECKPOINTS
    return Command(
        guards=[
            jobs.c.state.in_(RETRIED),
            jobs.c.deleted_at.is_(None),
            jobs.c.removed.bitwise_and(int(lacks)) == 0,
            jobs.c.removing == 0,
        ],
        values={
            "state": State.QUEUED,
            "reason": "retried; not scheduled yet",
            "error": None,
            "finished_at": None,
            "failures": 0,
            "last_failure": None,
            "failures_in_row": 0,
            "backoff_seconds": 0.0,
            "not_before": None,
            "waits_until": None,  # its time limit in the queue begins anew
            "workers": None,
            "ran_seconds": 0.0,
            "cancel_requested_at": None,
            "ended_by": None,
            "from_scratch": True if from_scratch else jobs.c.from_scratch,
            "removed": 0,
            "last_command": given("retry", by, from_scratch=from_scratch),
        },
        refusal=_refusal_of_retry,
    )


def _refusal_of_retry(job: Job) -> str | None:
    if job.state is State.SUCCEEDED:
        return (
            "has succeeded: there is nothing to retry; to go on with it as a new job: syncbn extend "
            f"{job.id}, to run it again: syncbn clone {job.id}"
        )
    if not job.state.ended:
        return None
    if job.removing:
        return "cannot be retried now, since retention is removing a part of it: try again in a moment"
    return (
        "cannot continue: retention has removed its checkpoints; to begin from step 0: syncbn retry "
        f"--from-scratch {job.id}"
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
