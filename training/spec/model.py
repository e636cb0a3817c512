"""The pydantic model of a job specification, and functions to parse and flatten one.

The API process imports this module, so it imports only pydantic.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import (
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)

from training.spec.environment import Environment
from training.spec.errors import Problem, SpecError, located, problems_of
from training.spec.lightning_cli import as_spec
from training.spec.norm import Norm
from training.spec.parts import ClassPath, ClassSpec, Part
from training.spec.reproducible import check_bits, shards_of
from training.spec.resources import Resources
from training.spec.script import NOT_WITH_A_SCRIPT, SCRIPT_NOTE, Script, check_keys_beside_script
from training.spec.source import Source
from training.spec.start_from import StartFrom
from training.spec.time_limit import TimeLimit
from training.spec.trainer import TrainerOptions
from training.spec.training import Training

__all__ = ["Problem", "Spec", "SpecError", "flat", "parse_spec", "read_spec", "shares"]

MetricName = Annotated[str, Field(min_length=1, max_length=200)]
LabelKey = Annotated[str, Field(max_length=200)]
LabelValue = Annotated[str, Field(max_length=2_000)]
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


class Optimizer(ClassSpec):
    """A torch optimizer, constructed with the model's parameters and `init_args`."""

    class_path: ClassPath = "torch.optim.SGD"


class LRScheduler(ClassSpec):
    """A torch learning rate scheduler, constructed with the optimizer and `init_args`."""

    interval: Literal["epoch", "step"] = Field(
        default="epoch", description="It steps once an epoch, or once an optimizer step"
    )


_MISSING = object()


class Tracking(Part):
    """The MLflow experiment of the run, and the name under which its model is registered."""

    experiment: str = Field(
        default="default", min_length=1, max_length=250, description="Made if MLflow has none of this name"
    )
    register_as: str | None = Field(
        default=None, min_length=1, max_length=256, description="Name in the model registry, without / and :"
    )

    @field_validator("experiment")
    @classmethod
    def _shown_on_one_line(cls, name: str) -> str:
        if not name.strip() or _CONTROL.search(name):
            raise ValueError(
                f"{name!r} is not a name of an experiment; it needs visible characters, and no line breaks "
                "or other control characters"
            )
        return name

    @field_validator("register_as")
    @classmethod
    def _accepted_by_registry(cls, name: str | None) -> str | None:
        """Checks MLflow's rules for registered models, so that no job fails when it saves its model."""
        if name is None:
            return None
        if "/" in name or ":" in name:
            without = re.sub("[/:]+", "-", name).strip("-.")
            hint = f"write for example {without!r}" if without else "choose another name"
            raise ValueError(f"MLflow refuses / and : in the name of a model, here {name!r}; {hint}")
        if not name.strip() or _CONTROL.search(name) or name == "." or name.startswith(".."):
            raise ValueError(
                f"MLflow refuses {name!r} as the name of a model; choose another name, or omit this key to "
                "register no model"
            )
        return name


class Spec(Part):
    """One job. Only `model` and `data` are required, or a `script` in place of both.

    Immutable. `parse_spec` constructs it and raises SpecError; `Spec.model_validate` raises pydantic's
    ValidationError. The dump has only the keys that apply: those of a script, or those of a model and data.
    """

    model_config = ConfigDict(
        json_schema_extra={"oneOf": [{"required": ["model", "data"]}, {"required": ["script"]}]}
    )

    name: str = Field(
        default="", max_length=200, description="Defaults to the name of the model's class, or of the script"
    )
    script: Script | None = Field(
        default=None, description="A program of your own, in place of model, data and all that trains them"
    )
    model: ClassSpec | None = Field(
        default=None,
        validate_default=True,
        description="nn.Module or LightningModule; required without a script",
    )
    data: ClassSpec | None = Field(
        default=None,
        description="LightningDataModule; required without a script; null: the LightningModule's own loaders",
    )
    norm: Norm = Field(default=Norm(), description="What becomes of the model's BatchNorm layers")
    loss: ClassSpec = Field(
        default=ClassSpec(class_path="torch.nn.CrossEntropyLoss"),
        description="For an nn.Module: called with (output, target); must return the mean over the samples",
    )
    metrics: dict[MetricName, ClassSpec] = Field(
        max_length=50,
        default={
            "accuracy": ClassSpec(
                class_path="torchmetrics.classification.MulticlassAccuracy", init_args={"average": "micro"}
            )
        },
        description="For an nn.Module: torchmetrics metrics, logged as train_NAME, val_NAME, test_NAME",
    )
    optimizer: Optimizer | None = Field(
        default=None,
        description="Default for an nn.Module: SGD(lr=0.1, momentum=0.9); a LightningModule has its own",
    )
    lr_scheduler: LRScheduler | None = Field(
        default=None, description="Of `optimizer`; null: a constant rate, or the LightningModule's own"
    )
    training: Training = Field(
        default=Training(), description="Length, batches, precision, seed, checkpoints"
    )
    trainer: TrainerOptions = Field(
        default=TrainerOptions(),
        description="Arguments of Lightning's Trainer by their own names, see the table of what they do here",
    )
    start_from: StartFrom | None = Field(
        default=None, description="A checkpoint of another run; null: the model's own initial weights"
    )
    resources: Resources = Field(default=Resources(), description="Workers, and the CPUs and GPUs of each")
    time_limit: TimeLimit = Field(
        default=TimeLimit(), description="How long it may run and wait: a duration, or one for each"
    )
    environment: Environment = Field(default=Environment(), description="Environment variables of the ranks")
    priority: int = Field(default=0, ge=-1000, le=1000, description="Jobs with a higher priority start first")
    retries: int = Field(default=3, ge=0, le=100, description="Maximum number of restarts after failures")
    tracking: Tracking = Field(default=Tracking(), description="Names in MLflow")
    labels: dict[LabelKey, LabelValue] = Field(
        default_factory=dict,
        max_length=100,
        description="Key-value pairs of your own, by which jobs can be listed",
    )
    code: str | None = Field(
        default=None, pattern=r"^[0-9a-f]{64}$", description="Digest of an uploaded archive (POST /v1/code)"
    )
    source: Source | None = Field(default=None, description="Who submitted it, and the commit of its code")

    @model_validator(mode="before")
    @classmethod
    def _named(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        check_keys_beside_script(data)
        model, script = data.get("model"), data.get("script")
        if "data" not in data and script is None:
            data = {**data, "data": _MISSING}
        if data.get("name") in (None, ""):
            if isinstance(script, Mapping):
                return {**data, "name": str(script.get("path", "")).rpartition("/")[2][:200]}
            if isinstance(model, Mapping):
                return {**data, "name": str(model.get("class_path", "")).rpartition(".")[2][:200]}
        return data

    @field_validator("data", mode="before")
    @classmethod
    def _given_or_null(cls, part: Any) -> Any:
        if part is _MISSING:
            raise located("data", "is required")
        return part

    @field_validator("model")
    @classmethod
    def _given(cls, part: ClassSpec | None, info: ValidationInfo) -> ClassSpec | None:
        # `script` is not in info.data if it is not valid, and then that is what is to be told.
        if part is None and info.data.get("script", ...) is None:
            raise located("model", "is required")
        return part

    @model_serializer(mode="wrap")
    def _that_apply(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        dumped: dict[str, Any] = dump(self)
        for key in ("script",) if self.script is None else NOT_WITH_A_SCRIPT:
            dumped.pop(key, None)
        return dumped

    def trained(self) -> tuple[ClassSpec, ClassSpec | None]:
        """Returns the model and the data of a spec that has no script; None: the model has the loaders."""
        assert self.model is not None
        return self.model, self.data

    @property
    def shards(self) -> int:
        """The number of shards of a micro-batch, see `training.reproducible`."""
        return shards_of(self.training, self.resources)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.script is not None:
            gpus = self.resources.gpus_per_worker
            if gpus % 1 and self.resources.max_workers > 1:
                raise located(
                    "resources.gpus_per_worker",
                    f"the workers of a script cannot share a GPU ({gpus:g} for each), since each uses the "
                    "one with the number LOCAL_RANK; give a whole number",
                )
            return self
        most, batch = self.resources.max_workers, self.training.global_batch_size
        if batch is not None and batch < most:
            raise located(
                "training.global_batch_size",
                f"{batch} samples cannot be shared by {most} workers; "
                f"give at least {most}, or lower resources.workers",
            )
        if batch is not None and batch < self.training.accumulate_grad_batches:
            raise located(
                "training.accumulate_grad_batches",
                f"{batch} samples cannot be split into {self.training.accumulate_grad_batches} "
                "micro-batches; give at most training.global_batch_size",
            )
        if isinstance(self.norm.group, int) and self.resources.min_workers % self.norm.group:
            raise located(
                "norm.group",
                f"{self.resources.min_workers} workers cannot be cut into groups of {self.norm.group}; "
                "choose a divisor of resources.workers",
            )
        if self.training.precision == "16-mixed" and not self.resources.gpus_per_worker:
            raise located("training.precision", "16-mixed needs a GPU; on CPU choose bf16-mixed or 32-true")
        check_bits(self.training, self.norm, self.resources, self.trainer)
        endless = self.training.max_epochs == -1 and self.training.max_steps is None
        if endless and self.trainer.max_time is None:
            raise located(
                "training.max_epochs", "-1 never ends; give max_steps or trainer.max_time beside it"
            )
        return self


def parse_spec(data: object) -> Spec:
    """Validates `data`, the parsed YAML or JSON. Raises SpecError with at most 50 offending keys."""
    return read_spec(data)[0]


def read_spec(data: object) -> tuple[Spec, list[str]]:
    """Returns the spec and sentences on it: what becomes of arguments of Lightning, what depends on workers.

    data: the parsed YAML or JSON of a spec, or of a configuration of LightningCLI. Raises SpecError with at
    most 50 offending keys.
    """
    if not isinstance(data, Mapping):
        kind = type(data).__name__
        raise SpecError([Problem(key="", message=f"a spec is a mapping with model and data, not {kind}")])
    if "sweep" in data:
        raise SpecError(
            [Problem(key="sweep", message="is for several jobs: `syncbn sweep` runs them; omit it for one")]
        )
    check_keys_beside_script(data)
    data, notes = as_spec(data, known=set(Spec.model_fields))
    if data.get("script") is not None:
        notes.append(SCRIPT_NOTE)
    try:
        spec = Spec.model_validate(data)
    except ValidationError as error:
        raise SpecError(problems_of(error, Spec)) from None
    if spec.script is None and spec.norm.depends_on_workers and spec.resources.max_workers > 1:
        notes.append(
            f"norm.kind {spec.norm.kind} normalises within each worker's share of a batch, so results depend "
            "on the number of workers"
        )
    return spec, notes


def flat(spec: Spec) -> dict[str, str]:
    """Returns the run's parameters: every value of the spec that is not None, as text by its dotted key.

    Labels and the source are not among them: they are tags.
    """
    values: dict[str, str] = {}

    def walk(key: str, value: object) -> None:
        if isinstance(value, Mapping) and (value or "init_args." not in key):  # {} may be an argument
            for name, inner in value.items():
                walk(f"{key}.{name}" if key else str(name), inner)
        else:
            values[key] = str(value)

    walk("", spec.model_dump(mode="json", exclude_none=True, exclude={"labels", "source"}))
    return values


def shares(batch_size: int, world_size: int) -> list[int]:
    """Returns the number of samples of each rank: as even as possible, the first ranks get one more.

    >>> shares(7, 4)
    [2, 2, 2, 1]
    """
    return [math.ceil((batch_size - rank) / world_size) for rank in range(world_size)]
