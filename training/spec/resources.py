"""The section `resources` of a job specification."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import (
    ByteSize,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)

from training.spec.parts import Part

ACCELERATOR_LABEL = "ray.io/accelerator-type"
"""The label that Ray gives to machines with accelerators."""

_LABEL_PART = r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?"
LabelName = Annotated[str, Field(pattern=rf"^([A-Za-z0-9.-]{{1,253}}/)?{_LABEL_PART}$")]
LabelValue = Annotated[str, Field(pattern=rf"^({_LABEL_PART})?$")]


def _bytes(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
    try:
        return handler(value)
    except ValidationError:
        raise ValueError(
            f"{value!r} is no amount of memory; write for example 4GiB, 500MB, or a number of bytes"
        ) from None


def shown_memory(size: float) -> str:
    """Returns a number of bytes as text.

    >>> shown_memory(3 * 2**29)
    '1.5 GiB'
    """
    return f"{size / 2**30:.3g} GiB"


Memory = Annotated[ByteSize, WrapValidator(_bytes)]


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
    memory_per_worker: Memory | None = Field(
        default=None,
        ge=64 * 2**20,
        le=2**50,
        description="Memory of each worker with its child processes: 4GiB, 500MB, or a number of bytes. Ray "
        "reserves it, and a worker that takes more is killed; null: neither",
    )
    node_labels: dict[LabelName, LabelValue] = Field(
        default_factory=dict,
        max_length=20,
        description="Only nodes with these labels (`ray start --labels zone=a`) run its workers",
    )
    accelerator_type: LabelValue | None = Field(
        default=None,
        min_length=1,
        description="Only nodes with this accelerator, by Ray's name, for example H100: short for the node "
        f"label {ACCELERATOR_LABEL}",
    )

    @model_validator(mode="after")
    def _one_accelerator(self) -> Self:
        other = self.node_labels.get(ACCELERATOR_LABEL)
        if other is not None and self.accelerator_type not in (None, other):
            raise ValueError(
                f"accelerator_type is {self.accelerator_type} and node_labels has {ACCELERATOR_LABEL}: "
                f"{other}; keep one of them"
            )
        return self

    @property
    def min_workers(self) -> int:
        """The least number of workers with which the job may run: `workers`, or its min."""
        return self.workers if isinstance(self.workers, int) else self.workers.min

    @property
    def max_workers(self) -> int:
        """The greatest number of workers that the job may get: `workers`, or its max."""
        return self.workers if isinstance(self.workers, int) else self.workers.max

    @property
    def labels(self) -> dict[str, str]:
        """The labels that a node must have to run a worker, with that of the accelerator."""
        accelerator = {} if self.accelerator_type is None else {ACCELERATOR_LABEL: self.accelerator_type}
        return {**self.node_labels, **accelerator}
