"""The section `start_from` of a job specification."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from training.spec.parts import Part


class StartFrom(Part):
    """The checkpoint of another run that this one starts from: `job`, `run` or `path` names the run."""

    job: str | None = Field(default=None, min_length=1, description="Id of a job that has ended")
    run: str | None = Field(default=None, min_length=1, description="Instead of `job`: its MLflow run id")
    path: str | None = Field(
        default=None,
        min_length=1,
        description="For `syncbn train`: an output folder of it, a checkpoint of Lightning, or a file of "
        "weights (.pt, .safetensors)",
    )
    checkpoint: Literal["best", "last"] | Annotated[int, Field(ge=0)] = Field(
        default="last", description="best, last or the number of a step; a job keeps its choice as a number"
    )
    state: Literal["weights", "all"] = Field(
        default="weights",
        description="weights: the model's alone, and training starts at step 0; all: training goes on where "
        "the other run was, with its optimizers, schedulers, callbacks and step",
    )
    strict: bool = Field(
        default=True,
        description="For weights: refuse names that the model lacks, or that the checkpoint lacks; false: "
        "leave them out",
    )

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        given = [name for name in ("job", "run", "path") if getattr(self, name) is not None]
        if len(given) != 1:
            found = f"{' and '.join(given)} are given" if given else "none is given"
            raise ValueError(f"one of job, run and path says what to start from; {found}")
        if self.state == "all" and not self.strict:
            raise ValueError("strict: false leaves weights out, and state: all needs all of them; give one")
        return self
