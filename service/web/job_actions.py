"""What the caller may do with a job in its present state. The routes decide; this leaves out the vain."""

from __future__ import annotations

from dataclasses import dataclass

from service.access.caller import Caller, Scope
from service.jobs.job import Job, Removed, State
from service.queue.commands import RETRIED

_PAUSED = frozenset({State.QUEUED, State.STARTING, State.RUNNING, State.PREEMPTING})


@dataclass(frozen=True, kw_only=True)
class Actions:
    """The actions that the job's state allows. refusal: why the caller may do none of them; "".

    resume_from: whether a retry may continue from a checkpoint. extend: the key of the spec that says how
    long it trains, and its value; None: it cannot be extended.
    """

    refusal: str = ""
    cancel: bool = False
    pause: bool = False
    resume: bool = False
    resize: bool = False
    priority: bool = False
    retry: bool = False
    resume_from: bool = False
    extend: tuple[str, int] | None = None
    delete: bool = False


def actions_of(job: Job, caller: Caller | None) -> Actions:
    """Returns what the caller may do with the job."""
    if job.deleted_at is not None:
        return Actions()
    if refusal := _refusal(job, caller):
        return Actions(refusal=refusal)
    steerable = not job.state.ended and job.cancel_requested_at is None
    return Actions(
        cancel=steerable,
        pause=steerable and job.state in _PAUSED,
        resume=steerable and job.state is State.PAUSED,
        resize=steerable and job.elastic,
        priority=steerable,
        retry=job.state in RETRIED,
        resume_from=Removed.CHECKPOINTS not in job.removed,
        extend=_length(job) if job.state is State.SUCCEEDED else None,
        delete=job.state.ended,
    )


def _refusal(job: Job, caller: Caller | None) -> str:
    if caller is None or not caller.scope.includes(Scope.SUBMIT):
        return "Your key has the scope read: it shows jobs, and changes none."
    if not caller.may_change(job.user):
        whose = f"is of {job.user}" if job.user else "is of no user"
        return f"This job {whose}. Your key changes jobs of {caller.user} alone; others need the scope admin."
    return ""


def _length(job: Job) -> tuple[str, int] | None:
    if job.runs_script or Removed.CHECKPOINTS in job.removed:
        return None
    training = job.spec["training"]
    for key in ("max_epochs", "max_steps"):
        if (training.get(key) or 0) > 0:
            return key, training[key]
    return None
