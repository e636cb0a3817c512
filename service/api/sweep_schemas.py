"""The documents of sweeps: what a request submits and what the API answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, Literal, Self

from pydantic import Field

from service.api.schemas import Document, ProgressDocument, RunDocument, shown_metrics
from service.jobs.job import Job, State
from service.jobs.sweep import Sweep, SweepJob, SweepState
from training.spec.sweep import SweepPlan, SweepPoint

_MAIN = ("test_", "val_", "train_loss")


class SweepRequest(SweepPlan):
    """The body of `POST /v1/sweeps`: a spec, and which values to try for some of its keys."""

    name: str = Field(
        default="",
        max_length=190,
        description="Its jobs are NAME-1, NAME-2 and so on; default: that of the spec",
    )
    spec: dict[str, Any] = Field(description="As in `POST /v1/jobs`")

    @property
    def plan(self) -> SweepPlan:
        """The same without name and spec."""
        return SweepPlan(**{name: getattr(self, name) for name in SweepPlan.model_fields})


class SweepSummary(Document):
    """A sweep without its points."""

    id: str = Field(examples=["s1k0w1qk530wdg8e15q54"])
    name: str
    state: SweepState = Field(
        description="running and paused: jobs have not ended; succeeded: all jobs have; failed: any has; "
        "cancelled: all others. Deleted jobs do not count"
    )
    reason: str = Field(description="What holds it up, or how it ended", examples=["2 of 12 jobs failed"])
    jobs: int = Field(description="Number of its jobs, deleted ones included")
    counts: dict[State | Literal["deleted"], int] = Field(description="How many jobs have which state")
    max_running: int | None = Field(description="Maximum number of its jobs that run at once")
    keys: list[str] = Field(description="The dotted keys of the spec that it sweeps")
    created_at: datetime
    user: str | None = Field(description="User of the API key with which it was submitted; null: of none")
    mlflow: RunDocument | None = Field(description="The parent of its jobs' runs; null before one starts")

    @classmethod
    def of(cls, sweep: Sweep, states: Counter[State], url: str | None, **more: Any) -> Self:
        """Returns the document. states: how many of its jobs have which. url: of its run, if there is one."""
        state, run = sweep.state(states), sweep.run
        return cls(
            **{name: getattr(sweep, name) for name in ("id", "name", "max_running", "created_at", "user")},
            state=state,
            reason=_reason(sweep, state, states),
            jobs=len(sweep.points),
            counts=_counts(sweep, states),
            keys=list(dict.fromkeys(key for values in sweep.points for key in values)),
            mlflow=RunDocument(experiment_id=run.experiment_id, run_id=run.run_id, url=url)
            if run and url
            else None,
            **more,
        )


class SweepPointDocument(Document):
    """A point of a sweep, and its job."""

    number: int = Field(description="From 1")
    values: dict[str, Any] = Field(description="Of the swept keys, by dotted key")
    job: str = Field(description="Id of its job; empty if it was deleted")
    name: str
    state: State | Literal["deleted"]
    reason: str
    progress: ProgressDocument | None
    metrics: dict[str, float | None] = Field(
        description="Latest value of train_loss and of each metric of validation and test; without these, of "
        "all metrics; null if not finite"
    )

    @classmethod
    def of(cls, job: Job | SweepJob, values: Mapping[str, Any]) -> Self:
        """Returns the document of a job of a sweep."""
        progress = job.progress
        metrics = shown_metrics(progress.metrics) if progress else {}
        return cls(
            number=job.point or 0,
            values=dict(values),
            job=job.id,
            name=job.name,
            state=job.state,
            reason=job.reason,
            progress=ProgressDocument.model_validate(progress) if progress else None,
            metrics={name: metrics[name] for name in metrics if name.startswith(_MAIN)} or metrics,
        )

    @classmethod
    def of_deleted(cls, sweep: Sweep, number: int) -> Self:
        """Returns the document of a point whose job was deleted."""
        return cls(
            number=number,
            values=sweep.points[number - 1],
            job="",
            name=f"{sweep.name}-{number}",
            state="deleted",
            reason="the job was deleted",
            progress=None,
            metrics={},
        )


class SweepDocument(SweepSummary):
    """A sweep with its points."""

    plan: SweepPlan
    finished_at: datetime | None = Field(description="When its last job ended")
    points: list[SweepPointDocument]

    @classmethod
    def with_jobs(
        cls,
        sweep: Sweep,
        jobs: Sequence[Job] | Sequence[SweepJob],
        url: str | None,
        point: Callable[[Any, Mapping[str, Any]], SweepPointDocument] = SweepPointDocument.of,
    ) -> Self:
        """Returns the document of a sweep with all its jobs. point: returns that of a job with its values."""
        ends = [job.finished_at for job in jobs if job.finished_at is not None]
        found = {job.point or 1: job for job in jobs}
        return cls.of(
            sweep,
            Counter(job.state for job in jobs),
            url,
            plan={key: value for key, value in sweep.document.items() if key != "spec"},
            finished_at=max(ends) if ends and len(ends) == len(jobs) else None,
            points=[
                point(found[number], values)
                if number in found
                else SweepPointDocument.of_deleted(sweep, number)
                for number, values in enumerate(sweep.points, 1)
            ],
        )


class SweepPage(Document):
    """One page of sweeps."""

    items: list[SweepSummary]
    next_cursor: str | None = Field(description="Give it as `cursor` to get the next page; null: the last")


class PlannedPointDocument(Document):
    """A point that a sweep would have."""

    number: int
    values: dict[str, Any]
    name: str

    @classmethod
    def of(cls, point: SweepPoint) -> Self:
        """Returns the document of a point."""
        return cls(number=point.number, values=dict(point.values), name=point.spec.name)


class SweepValidationDocument(Document):
    """What a sweep would run."""

    valid: bool = True
    points: list[PlannedPointDocument]
    notes: list[str] = Field(
        description="As in `POST /v1/jobs/validate`; what several points share is said once"
    )


def _counts(sweep: Sweep, states: Counter[State]) -> dict[State | Literal["deleted"], int]:
    counts: dict[State | Literal["deleted"], int] = {each: states[each] for each in State if states[each]}
    deleted = len(sweep.points) - states.total()
    return {**counts, "deleted": deleted} if deleted else counts


def _reason(sweep: Sweep, state: SweepState, states: Counter[State]) -> str:
    jobs = len(sweep.points)
    left = sum(count for each, count in states.items() if not each.ended)
    if left and sweep.cancel_requested_at is not None:
        return f"cancelled; still stopping: {left} of {jobs} jobs"
    if state is SweepState.PAUSED and states[State.PAUSING]:
        return f"still pausing: {states[State.PAUSING]} of {jobs} jobs"
    ended = {State.FAILED: "failed", State.CANCELLED: "cancelled"}
    parts = [f"{states[each]} {word}" for each, word in ended.items() if states[each]]
    if deleted := jobs - states.total():
        parts.append(f"{deleted} deleted")
    return f"{' and '.join(parts)} of {jobs} job{'' if jobs == 1 else 's'}" if parts else ""
