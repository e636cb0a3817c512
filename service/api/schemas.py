"""The API's response documents. Numbers that are not finite (a diverged loss) are null."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime
from typing import Any, Literal, Self

from fastapi import Response
from pydantic import BaseModel, ConfigDict, Field

from service.api.showable import showable
from service.jobs.expected import ExpectedStart
from service.jobs.failures import FailureClass, class_of
from service.jobs.job import Job, State, utc_now
from service.queue.queue_pages import QueuedJob
from service.queue.stored_events import JobEvent
from service.scheduling.scheduler import Forecast
from training.checkpoints.listing import Listed
from training.metric_names import is_detail
from training.spec import Resources, Spec, shares

_SHOWN_SHARES = 4096


class Document(BaseModel):
    """Base class of the response documents."""

    model_config = ConfigDict(from_attributes=True, frozen=True)


def json_response(
    document: Document, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """Returns the response that FastAPI would make of the document, without a check in a further thread."""
    return Response(
        document.__pydantic_serializer__.to_json(document), status, headers, media_type="application/json"
    )


class ProgressDocument(Document):
    """A job's progress. Steps are optimizer steps, counted from 1; epochs are counted from 0."""

    step: int
    total_steps: int | None
    epoch: int
    eta_seconds: float | None


class RunDocument(Document):
    """The job's MLflow run; `url` opens in a browser."""

    experiment_id: str
    run_id: str
    url: str


class LastFailureDocument(Document):
    """The last failure of a job, after which it was started again or given up."""

    kind: FailureClass
    type: str = Field(description="Class of the exception, name of the signal, and so on; may be empty")
    step: int = Field(description="0 before the first")
    in_row: int = Field(description="Number of failures without progress in between, this one included")

    @classmethod
    def of(cls, job: Job) -> Self | None:
        """Returns the document of the last failure; None if there is none."""
        last = job.last_failure
        if last is None:
            return None
        return cls(kind=class_of(last), type=last.type, step=last.step, in_row=job.failures_in_row)


class CommandDocument(Document):
    """The last command that changed a job, with what it was given."""

    model_config = ConfigDict(extra="allow", frozen=True)

    command: str = Field(examples=["pause"])
    by: str = Field(description="Name of the user; empty if it is not known")
    at: datetime


class ExpectedStartDocument(Document):
    """When a waiting job is expected to start, and why then."""

    at: datetime | None = Field(description="Never in the past; null: soon, or not known, as `because` says")
    because: str = Field(
        description="What lets it start then, or why nothing is known",
        examples=["when job j1k0w1qk530wdg8e15q54 ends"],
    )
    at_latest: bool = Field(
        description="Whether it may start earlier: of a job before it only a limit is known, or nothing"
    )

    @classmethod
    def of(cls, expected: ExpectedStart | None) -> Self | None:
        """Returns the document of an estimate as of now; None if there is none."""
        return None if expected is None else cls.model_validate(expected.shown(utc_now()))


class JobDocument(Document):
    """One job."""

    id: str = Field(examples=["j1k0w1qk530wdg8e15q54"])
    name: str = Field(examples=["fashion-resnet18"])
    state: State
    reason: str = Field(
        description="Why it waits, was stopped, or ended", examples=["needs 4 workers of 1 GPU; 3 GPUs free"]
    )
    priority: int
    labels: dict[str, str]
    spec: dict[str, Any] = Field(description="With every default filled in")
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    attempt: int = Field(description="Number of the latest attempt; 0 before the first")
    workers: int | None = Field(description="Workers of the current attempt; null while it waits")
    wanted_workers: int | None = Field(description="Workers that a resize asked for; null: no resize")
    error: dict[str, Any] | None = Field(
        description="Why it failed: kind, type, message, rank, log_tail, and step if known"
    )
    failures: int = Field(description="Retries used so far; `spec.retries` limits them")
    last_failure: LastFailureDocument | None = Field(description="null: none since it was queued or retried")
    not_before: datetime | None = Field(description="When it may start again after a failure; null: it may")
    expected_start: ExpectedStartDocument | None = Field(
        description="null: it does not wait, or no estimate has been made of it"
    )
    ended_by: str | None = Field(
        description="Who ended it: `job` itself, the `scheduler` that gave it up, its `time limit`, or the "
        "name of the user, empty if it is not known; null: it has not ended"
    )
    last_command: CommandDocument | None = Field(description="null: no command has changed it")
    removed: list[str] = Field(description="What retention has removed of it", examples=[["logs"]])
    progress: ProgressDocument | None = Field(description="null before the first step")
    metrics: Mapping[str, float | None] = Field(
        description="Latest value of each metric, null if not finite; empty before the first step"
    )
    weights_sha256: str | None = Field(
        description="SHA-256 of the weights and buffers that it has delivered; null: it has not succeeded, "
        "runs a script, or was trained by an earlier version"
    )
    mlflow: RunDocument | None
    sweep: str | None = Field(description="Id of the sweep that it is a job of")
    user: str | None = Field(
        description="User of the API key with which it was submitted; null: of the server's own key or token"
    )

    @classmethod
    def of(cls, job: Job, url: str | None) -> Self:
        """Returns the document of `job`. `url`: address of its MLflow run; None if there is none."""
        run, progress = job.run, job.progress
        return cls(
            **{name: getattr(job, name) for name in _FROM_JOB},
            spec=showable(job.spec),
            progress=ProgressDocument.model_validate(progress) if progress else None,
            metrics=shown_metrics(progress.metrics) if progress else {},
            mlflow=RunDocument(experiment_id=run.experiment_id, run_id=run.run_id, url=url)
            if run and url
            else None,
            sweep=job.sweep_id,
            last_failure=LastFailureDocument.of(job),
            not_before=shown_wait(job),
            expected_start=ExpectedStartDocument.of(job.expected),
            removed=job.removed.names,
        )


def shown_wait(job: Job | QueuedJob) -> datetime | None:
    """Returns until when the job waits after a failure; None if it does not."""
    return job.not_before if job.backoff_seconds else None


def shown_metrics(metrics: Mapping[str, float]) -> dict[str, float | None]:
    return {
        name: value if math.isfinite(value) else None
        for name, value in metrics.items()
        if not is_detail(name)
    }


_NOT_FROM_JOB = {
    *("spec", "progress", "metrics", "mlflow", "sweep", "last_failure", "not_before", "removed"),
    "expected_start",
}
_FROM_JOB = [name for name in JobDocument.model_fields if name not in _NOT_FROM_JOB]


class ResizeRequest(BaseModel):
    """The body of a resize."""

    model_config = ConfigDict(extra="forbid", strict=True)

    workers: int = Field(ge=1, description="Within the range of the job's resources.workers", examples=[2])


class RetryRequest(BaseModel):
    """The body of a retry."""

    model_config = ConfigDict(extra="forbid", strict=True)

    from_scratch: bool = Field(
        default=False, description="Begin from step 0 in a new run; its checkpoints are removed"
    )


class PriorityRequest(BaseModel):
    """The body of a change of priority."""

    model_config = ConfigDict(extra="forbid", strict=True)

    priority: int = Field(ge=-1000, le=1000, description="Jobs with a higher one start first", examples=[10])


class JobPage(Document):
    """One page of jobs."""

    items: list[JobDocument]
    next_cursor: str | None = Field(description="Give it as `cursor` to get the next page; null: the last")


class PointDocument(Document):
    """One value of a metric; null if not finite. `timestamp` is in milliseconds since the epoch."""

    name: str
    step: int
    value: float | None
    timestamp: int


class PointPage(Document):
    """Every point of the requested metrics."""

    items: list[PointDocument]


class CheckpointDocument(Document):
    """A checkpoint of a job."""

    name: str = Field(examples=["step-000000300"])
    step: int = Field(description="Optimizer steps made, over the whole job")
    epoch: int | None = Field(description="Complete epochs; null: an earlier version saved it")
    saved_at: datetime | None = Field(description="null: an earlier version saved it")
    bytes: int = Field(description="Of all its files; `GET …/checkpoints/{which}` sends the largest of them")
    monitor: str = Field(description="The job's training.checkpoint.monitor", examples=["val_loss"])
    metric: float | None = Field(description="Its value; null if it is not known for these weights")
    best: bool = Field(description="Whether its metric is the best of the job")
    last: bool = Field(description="Whether it is the latest of the job")

    @classmethod
    def of(cls, checkpoint: Listed, job: Job) -> Self:
        """Returns the document of a job's checkpoint."""
        fields = {name: getattr(checkpoint, name) for name in _FROM_CHECKPOINT}
        return cls(**fields, monitor=job.spec["training"]["checkpoint"]["monitor"])


_FROM_CHECKPOINT = [name for name in CheckpointDocument.model_fields if name != "monitor"]


class CheckpointPage(Document):
    """The checkpoints of a job that are kept, by step."""

    items: list[CheckpointDocument]


class FileDocument(Document):
    """A file that a job's own code has written."""

    path: str = Field(examples=["logs/metrics.csv"])
    bytes: int
    saved_at: datetime = Field(description="When it was last changed")


class FilePage(Document):
    """The files that a job's own code has written, by path."""

    items: list[FileDocument]
    left_out: int = Field(
        description="Entries besides: links to folders or to the outside, what is no regular file, names "
        "with control characters, and files after the first 10,000"
    )


class EventDocument(Document):
    """One change of a job, and what the job was after it."""

    id: int = Field(description="Rises with each change; also the event's id in the stream")
    job: str = Field(description="The job's id", examples=["j1k0w1qk530wdg8e15q54"])
    name: str = Field(description="The job's name")
    type: Literal["state", "restart", "cancel_requested", "resize", "priority"] = Field(
        description="What has changed; `state`: the state or the attempt, and a new job"
    )
    state: State
    reason: str
    attempt: int
    start: int = Field(description="Number of the start within the attempt")
    workers: int | None
    wanted_workers: int | None
    priority: int
    at: datetime = Field(description="By the database's clock")

    @classmethod
    def of(cls, event: JobEvent, name: str) -> Self:
        """Returns the document of an event of the job with this name."""
        return cls.model_validate({**asdict(event), "job": event.job_id, "name": name})


class Total(Document):
    """A number of workers, and what all of them need together."""

    workers: int
    cpus: float | None
    gpus: float | None
    memory: int | None = Field(default=None, description="Bytes; null: not reserved")

    @classmethod
    def of(cls, workers: int, resources: Resources) -> Self:
        """Returns the total for `workers` workers, CPUs and GPUs rounded to four decimals."""
        # Rounded so that 3 × 0.3333 is shown as 0.9999, not 0.9998999999999999.
        return cls(
            workers=workers,
            cpus=round(workers * resources.cpus_per_worker, 4),
            gpus=round(workers * resources.gpus_per_worker, 4),
            memory=resources.memory_per_worker and workers * resources.memory_per_worker,
        )


class ValidationDocument(Document):
    """What would happen to the spec if it were submitted now."""

    valid: bool = True
    spec: dict[str, Any] = Field(description="With every default filled in")
    resources: Total = Field(description="What it would get now; if it has to wait, what it needs")
    shares: list[int] | None = Field(
        description="Samples of a global batch for each worker; null for a script, if the data's loader "
        "says how many, and "
        f"for more than {_SHOWN_SHARES} workers",
        examples=[[86, 85, 85]],
    )
    fits_now: bool | None = Field(description="Whether it would start at once; null: unknown")
    fits_ever: bool | None = Field(description="Whether it fits on the empty cluster; null: unknown")
    reason: str = Field(description="Why it would wait")
    expected_start: ExpectedStartDocument | None = Field(
        description="null: it would start at once, or the cluster does not answer"
    )
    notes: list[str] = Field(
        default_factory=list,
        description="What becomes of arguments of Lightning that the spec gives, and what holds for a script",
    )

    @classmethod
    def of(
        cls,
        spec: Spec,
        forecast: Forecast | None,
        reason: str,
        notes: list[str],
        expected: ExpectedStart | None = None,
    ) -> Self:
        """Returns the document for a valid spec. `forecast`: None if the cluster does not answer."""
        resources = spec.resources
        workers = forecast.workers if forecast else resources.min_workers
        size = None if spec.script else spec.training.global_batch_size
        return cls(
            spec=spec.model_dump(mode="json"),
            resources=Total.of(workers, resources),
            shares=shares(size, workers) if size and workers <= _SHOWN_SHARES else None,
            fits_now=forecast.fits_now if forecast else None,
            fits_ever=forecast.fits_ever if forecast else None,
            reason=reason,
            expected_start=ExpectedStartDocument.of(expected),
            notes=notes,
        )


class CodeDocument(Document):
    """An uploaded code archive; a spec's `code` takes its digest."""

    digest: str = Field(description="SHA-256, hex")
    size: int = Field(description="Bytes")


class SecretDocument(Document):
    """A secret, without its value."""

    name: str
    source: Literal["operator", "stored"] = Field(
        description="operator: given in the service's settings; stored: set with PUT /v1/secrets/{name}"
    )
    updated_at: datetime | None = Field(description="When it was set; null for the operator's")


class SecretPage(Document):
    """All secrets, by name."""

    items: list[SecretDocument]
