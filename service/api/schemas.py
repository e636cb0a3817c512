"""The API's response documents. Numbers that are not finite (a diverged loss) are null."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from service.jobs.job import Job, State
from service.scheduling.scheduler import Forecast
from training.checkpoints.listing import Listed
from training.protocol import is_detail
from training.spec import Resources, Spec, shares

_SHOWN_SHARES = 4096


class Document(BaseModel):
    """Base class of the response documents."""

    model_config = ConfigDict(from_attributes=True, frozen=True)


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
        description="Why it failed: type, message, rank, log_tail, and step if known"
    )
    progress: ProgressDocument | None = Field(description="null before the first step")
    metrics: Mapping[str, float | None] = Field(
        description="Latest value of each metric, null if not finite; empty before the first step"
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
            progress=ProgressDocument.model_validate(progress) if progress else None,
            metrics=shown_metrics(progress.metrics) if progress else {},
            mlflow=RunDocument(experiment_id=run.experiment_id, run_id=run.run_id, url=url)
            if run and url
            else None,
            sweep=job.sweep_id,
        )


def shown_metrics(metrics: Mapping[str, float]) -> dict[str, float | None]:
    return {
        name: value if math.isfinite(value) else None
        for name, value in metrics.items()
        if not is_detail(name)
    }


_NOT_FROM_JOB = {"progress", "metrics", "mlflow", "sweep"}
_FROM_JOB = [name for name in JobDocument.model_fields if name not in _NOT_FROM_JOB]


class ResizeRequest(BaseModel):
    """The body of a resize."""

    model_config = ConfigDict(extra="forbid", strict=True)

    workers: int = Field(ge=1, description="Within the range of the job's resources.workers", examples=[2])


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
    notes: list[str] = Field(
        default_factory=list,
        description="What becomes of arguments of Lightning that the spec gives, and what holds for a script",
    )

    @classmethod
    def of(cls, spec: Spec, forecast: Forecast | None, reason: str, notes: list[str]) -> Self:
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


class WaitingDocument(Document):
    """A job in the queue."""

    position: int = Field(description="From 1")
    id: str
    name: str
    priority: int
    reason: str
    needs: Total = Field(description="For the smallest number of workers that it starts with")
    created_at: datetime

    @classmethod
    def of(cls, position: int, job: Job) -> Self:
        """Returns the document of the job at `position` in the queue."""
        resources = job.resources
        return cls(
            position=position,
            id=job.id,
            name=job.name,
            priority=job.priority,
            reason=job.reason,
            needs=Total.of(resources.min_workers, resources),
            created_at=job.created_at,
        )


class QueuePage(Document):
    """The queued jobs in starting order."""

    items: list[WaitingDocument]


class NodeDocument(Document):
    """A node and its resources, in use or not."""

    id: str
    address: str
    cpus: float
    gpus: float
    memory: int = Field(description="Bytes that workers can reserve")
    labels: dict[str, str] = Field(description="By which a job's node_labels choose")


class AmountDocument(Document):
    """A number of CPUs and GPUs, fractions are possible; and memory in bytes."""

    cpus: float
    gpus: float
    memory: int


class ClusterDocument(Document):
    """The nodes as the scheduler last saw them, and the resources that running jobs leave free."""

    nodes: list[NodeDocument]
    total: AmountDocument
    free: AmountDocument
    running: list[str] = Field(description="Ids of the jobs that hold workers")
