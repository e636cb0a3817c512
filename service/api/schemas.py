"""What the API answers, as documents. Numbers that are not finite (a loss that diverged) are null."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field

from service.jobs.job import Job, State
from service.scheduling.scheduler import Forecast
from training.protocol import is_detail
from training.spec import Spec, shares

_SHOWN_SHARES = 4096


class Document(BaseModel):
    model_config = ConfigDict(from_attributes=True, frozen=True)


class ProgressDocument(Document):
    """Where a run stands. Steps are the optimizer's, from 1; epochs count from 0."""

    step: int
    total_steps: int | None
    epoch: int
    eta_seconds: float | None


class RunDocument(Document):
    """The job's run in MLflow; `url` is for a browser."""

    experiment_id: str
    run_id: str
    url: str


class JobDocument(Document):
    """One job."""

    id: str = Field(examples=["j1k0w1qk530wdg8e15q54"])
    name: str = Field(examples=["fashion-resnet18"])
    state: State
    reason: str = Field(
        description="Why it waits, is stopped, or ended", examples=["needs 4 workers of 1 GPU; 3 GPUs free"]
    )
    priority: int
    labels: dict[str, str]
    spec: dict[str, Any] = Field(description="With every default filled in")
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    attempt: int = Field(description="Number of the latest placement; 0 before the first")
    workers: int | None = Field(description="Granted to the attempt; null while it waits")
    wanted_workers: int | None = Field(description="What a resize asked for; null: what the spec allows")
    error: dict[str, Any] | None = Field(
        description="Why it failed: type, message, rank, log_tail, and step where it is known"
    )
    progress: ProgressDocument | None = Field(description="null before the first step")
    metrics: Mapping[str, float | None] = Field(
        description="Latest value of each, null for one that is not finite; empty where progress is null"
    )
    mlflow: RunDocument | None

    @classmethod
    def of(cls, job: Job, url: str | None) -> Self:
        run, progress = job.run, job.progress
        return cls(
            **{name: getattr(job, name) for name in _FROM_JOB},
            progress=ProgressDocument.model_validate(progress) if progress else None,
            metrics=_shown(progress.metrics) if progress else {},
            mlflow=RunDocument(experiment_id=run.experiment_id, run_id=run.run_id, url=url)
            if run and url
            else None,
        )


def _shown(metrics: Mapping[str, float]) -> dict[str, float | None]:
    return {
        name: value if math.isfinite(value) else None
        for name, value in metrics.items()
        if not is_detail(name)
    }


_FROM_JOB = [name for name in JobDocument.model_fields if name not in {"progress", "metrics", "mlflow"}]


class ResizeRequest(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    workers: int = Field(ge=1, description="Within the range of the job's resources.workers", examples=[2])


class JobPage(Document):
    items: list[JobDocument]
    next_cursor: str | None = Field(description="Give it as `cursor` to get the next page; null: the last")


class PointDocument(Document):
    """One value of a metric. `timestamp` in milliseconds since the epoch."""

    name: str
    step: int
    value: float | None
    timestamp: int


class PointPage(Document):
    items: list[PointDocument]


class Total(Document):
    """Workers, and what all of them together take."""

    workers: int
    cpus: float | None
    gpus: float | None

    @classmethod
    def of(cls, workers: int, cpus_per_worker: float, gpus_per_worker: float) -> Self:
        # 3 × 0.3333 shall read 0.9999, not 0.9998999999999999.
        cpus, gpus = round(workers * cpus_per_worker, 4), round(workers * gpus_per_worker, 4)
        return cls(workers=workers, cpus=cpus, gpus=gpus)


class ValidationDocument(Document):
    """What would become of the spec if it were submitted now."""

    valid: bool = True
    spec: dict[str, Any] = Field(description="With every default filled in")
    resources: Total = Field(description="What it would be granted now; where it has to wait, what it needs")
    shares: list[int] | None = Field(
        description="Samples of a global batch for each of these workers; null for thousands of workers",
        examples=[[86, 85, 85]],
    )
    fits_now: bool | None = Field(description="Whether it would start at once; null: not known now")
    fits_ever: bool | None = Field(description="Whether the empty cluster could hold it")
    reason: str = Field(description="Why it would wait")

    @classmethod
    def of(cls, spec: Spec, forecast: Forecast | None, reason: str) -> Self:
        asked = spec.resources
        workers = forecast.workers if forecast else asked.min_workers
        few = workers <= _SHOWN_SHARES
        return cls(
            spec=spec.model_dump(mode="json"),
            resources=Total.of(workers, asked.cpus_per_worker, asked.gpus_per_worker),
            shares=shares(spec.training.global_batch_size, workers) if few else None,
            fits_now=forecast.fits_now if forecast else None,
            fits_ever=forecast.fits_ever if forecast else None,
            reason=reason,
        )


class CodeDocument(Document):
    """An uploaded archive; give its digest as `code` in a spec."""

    digest: str = Field(description="SHA-256, hex")
    size: int = Field(description="Bytes")


class WaitingDocument(Document):
    """A job in the queue."""

    position: int = Field(description="From 1")
    id: str
    name: str
    priority: int
    reason: str
    needs: Total = Field(description="For the fewest workers it would start with")
    created_at: datetime

    @classmethod
    def of(cls, position: int, job: Job) -> Self:
        asked = job.resources
        return cls(
            position=position,
            id=job.id,
            name=job.name,
            priority=job.priority,
            reason=job.reason,
            needs=Total.of(asked.min_workers, asked.cpus_per_worker, asked.gpus_per_worker),
            created_at=job.created_at,
        )


class QueuePage(Document):
    items: list[WaitingDocument]


class NodeDocument(Document):
    id: str
    address: str
    cpus: float
    gpus: float


class AmountDocument(Document):
    cpus: float
    gpus: float


class ClusterDocument(Document):
    """The machines, as the scheduler last saw them, and what the running jobs leave of them."""

    nodes: list[NodeDocument]
    total: AmountDocument
    free: AmountDocument
    running: list[str] = Field(description="Ids of the jobs that hold workers")
