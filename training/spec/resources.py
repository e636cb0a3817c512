"""The section `resources` of a job specification."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from training.spec.parts import Part


class WorkerRange(Part):
    """The least and the greatest number of workers; the scheduler chooses between them."""

    min: int = Field(ge=1, le=100_000, description="The job starts when this many fit")
    max: int = Field(ge=1, le=100_000, description="It grows up to this many while there is room")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"min ({self.min}) is greater than max ({self.max})")
        return self


class Resources(Part):
    """The workers of a job and what each needs."""

    workers: Annotated[int, Field(ge=1, le=100_000)] | WorkerRange = Field(
        default=1, description="Number of workers (ranks), or a range within which the scheduler chooses"
    )
    cpus_per_worker: float = Field(
        default=1, gt=0, le=100_000, description="CPUs that Ray reserves for each worker; may be a fraction"
    )
    gpus_per_worker: float = Field(
        default=0, ge=0, le=100_000, description="GPUs of each worker; 0: it trains on CPUs"
    )

    @property
    def min_workers(self) -> int:
        """The least number of workers with which the job may run: `workers`, or its min."""
        return self.workers if isinstance(self.workers, int) else self.workers.min

    @property
    def max_workers(self) -> int:
        """The greatest number of workers that the job may get: `workers`, or its max."""
        return self.workers if isinstance(self.workers, int) else self.workers.max
