"""The section `training` of a job specification."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from training.spec.parts import Part


class Checkpoint(Part):
    """When checkpoints are written, and how many are kept. A run resumes with the next sample."""

    every_steps: int | None = Field(default=None, ge=1, description="Optimizer steps; null: by time alone")
    every_minutes: float | None = Field(default=5, gt=0, description="null: by steps alone")
    keep_last: int = Field(
        default=2, ge=1, le=10_000, description="How many of the latest to keep, beside the best one"
    )
    monitor: str = Field(
        default="val_loss",
        min_length=1,
        description="The epoch metric that decides which checkpoint is the best one",
    )
    mode: Literal["min", "max"] = Field(default="min", description="Which value of `monitor` is the best")
    deliver: Literal["last", "best"] = Field(
        default="last",
        description="Which model is tested at the end and saved as the run's: that after the last step, or "
        "that of the best checkpoint",
    )


class Training(Part):
    """The training loop: its length, its batches, and what makes it repeatable."""

    global_batch_size: int | None = Field(
        default=None,
        ge=1,
        le=2**31,
        description="Samples in one optimizer step, over all workers; 32 unless loader_batches is given",
    )
    loader_batches: int | None = Field(
        default=None,
        ge=1,
        le=100_000,
        description="Instead of global_batch_size: each micro-batch, and each batch of validation and test, "
        "is this many batches of the data's own loader, over all workers. Given by `trainer.devices`",
    )
    eval_batch_size: int | None = Field(
        default=None,
        ge=1,
        le=2**31,
        description="Samples in one batch of validation and test, over all workers; null: as in training",
    )
    max_epochs: int | None = Field(
        default=None,
        ge=-1,
        description="10 if max_steps is not given either; -1: no limit, beside max_steps or trainer.max_time",
    )
    max_steps: int | None = Field(
        default=None, ge=1, description="Optimizer steps; the run ends with the first limit that it reaches"
    )
    precision: Literal["64-true", "32-true", "bf16-mixed", "16-mixed"] = Field(
        default="32-true", description="Lightning's names; 16-mixed needs GPUs"
    )
    seed: int = Field(
        default=0, ge=0, lt=2**32, description="Of initial weights, order of samples and augmentation"
    )
    drop_last: bool = Field(default=False, description="Leave out the last, short batch of each epoch")
    accumulate_grad_batches: int = Field(
        default=1,
        ge=1,
        description="Number of micro-batches that a global batch is split into; each is normalised by its "
        "own statistics over all workers",
    )
    reproducible: Literal["curve", "bits"] = Field(
        default="curve",
        description="What does not depend on the number of workers. curve: the loss, to rounding; bits: each "
        "bit of the weights, of what is logged and of checkpoints, at the price of time",
    )
    shards: int | None = Field(
        default=None,
        ge=1,
        le=4096,
        description="For reproducible: bits: the parts of a micro-batch that are computed separately, at "
        "least as many as workers. Weights depend on it. null: 4, or the next power of 2 for more workers",
    )
    sampler: Literal["global", "own"] = Field(
        default="global",
        description="global: each batch is shared among the workers, and the order of samples, a stream's or "
        "a sampler's of your own too, does not depend on their number; own: each worker trains on the "
        "batches of its own loader, and results depend on the number of workers",
    )
    checkpoint: Checkpoint = Field(
        default=Checkpoint(), description="When the state is saved, so that a run can continue"
    )
    hang_seconds: float = Field(
        default=300,
        gt=0,
        le=86_400,
        description="After this time without progress workers are diagnosed, killed, and restarted from the "
        "last checkpoint",
    )

    @model_validator(mode="before")
    @classmethod
    def _with_defaults(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        for wanted, other, default in (
            ("max_epochs", "max_steps", 10),
            ("global_batch_size", "loader_batches", 32),
        ):
            if data.get(wanted) is None and data.get(other) is None:
                data = {**data, wanted: default}
        return data

    @field_validator("max_epochs")
    @classmethod
    def _trains(cls, epochs: int | None) -> int | None:
        if epochs == 0:
            raise ValueError("0 epochs train nothing; give at least 1")
        return epochs

    @model_validator(mode="after")
    def _one_batch(self) -> Self:
        if self.global_batch_size is not None and self.loader_batches is not None:
            raise ValueError(
                "global_batch_size and loader_batches are both given; keep the one that says how large a "
                "batch is, and omit the other or set it to null"
            )
        return self
