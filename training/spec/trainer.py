"""The arguments of Lightning's Trainer in a spec, and what becomes of each: honoured, mapped or refused.

A test compares them with the signature of the installed Lightning.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

ComponentPath = Annotated[
    str,
    Field(
        pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*$",
        max_length=500,
        description="Dotted path of a class, or the name of a class of Lightning's or of the uploaded code",
    ),
]


class Component(BaseModel):
    """An object that is given to the Trainer: its class and the constructor's keyword arguments."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    class_path: ComponentPath
    init_args: dict[str, Any] = Field(default_factory=dict)
    dict_kwargs: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _from_path(cls, data: Any) -> Any:
        return {"class_path": data} if isinstance(data, str) else data


Components = list[Component] | Component


def _batches(value: int | float) -> int | float:
    if value < 0 or (isinstance(value, float) and value > 1):
        raise ValueError(
            f"{value} is neither a number of batches, as 10, nor a part of them, from 0.0 to 1.0; "
            "give one of these"
        )
    return value


Batches = Annotated[int | float, AfterValidator(_batches)]
Period = dict[Literal["weeks", "days", "hours", "minutes", "seconds"], int]


class TrainerOptions(BaseModel):
    """Arguments of `lightning.pytorch.Trainer` by their own names. null: not given, unless another is said.

    A spec keeps those that are honoured; the others move to other keys when it is read. Its JSON leaves out
    those that have their default.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    accelerator: str | None = None
    strategy: str | Component | None = None
    devices: int | str | list[int] | None = None
    num_nodes: Annotated[int, Field(ge=1)] | None = None
    precision: int | str | None = None
    logger: bool | Components | None = None
    callbacks: Components | None = None
    fast_dev_run: bool | int | None = None
    max_epochs: Annotated[int, Field(ge=-1)] | None = None
    min_epochs: Annotated[int, Field(ge=0)] | None = None
    max_steps: Annotated[int, Field(ge=-1)] | None = None
    min_steps: Annotated[int, Field(ge=0)] | None = None
    max_time: Annotated[str, Field(pattern=r"^\d+:\d\d:\d\d:\d\d$")] | Period | None = Field(
        default=None, description="As days:hours:minutes:seconds, or a mapping of units"
    )
    limit_train_batches: Batches | None = None
    limit_val_batches: Batches | None = None
    limit_test_batches: Batches | None = None
    limit_predict_batches: Batches | None = None
    overfit_batches: Batches | None = None
    val_check_interval: Batches | str | Period | None = Field(
        default=None, description="Batches, or a part of the epoch from 0.0 to 1.0; not a time"
    )
    check_val_every_n_epoch: Annotated[int, Field(ge=1)] | None = Field(
        default=1, description="null: val_check_interval counts the batches of all epochs"
    )
    num_sanity_val_steps: Annotated[int, Field(ge=-1)] | None = None
    log_every_n_steps: Annotated[int, Field(ge=0)] | None = None
    enable_checkpointing: bool | None = None
    enable_progress_bar: bool | None = None
    enable_model_summary: bool | None = None
    accumulate_grad_batches: Annotated[int, Field(ge=1)] | None = None
    gradient_clip_val: Annotated[float, Field(ge=0)] | None = None
    gradient_clip_algorithm: Literal["norm", "value"] | None = None
    deterministic: bool | Literal["warn"] | None = None
    benchmark: bool | None = None
    inference_mode: bool | None = None
    use_distributed_sampler: bool | None = None
    profiler: Literal["simple", "advanced", "pytorch"] | Component | None = None
    detect_anomaly: bool | None = None
    barebones: bool | None = None
    plugins: Components | None = None
    sync_batchnorm: bool | None = None
    reload_dataloaders_every_n_epochs: Annotated[int, Field(ge=0)] | None = None
    default_root_dir: str | None = None
    enable_autolog_hparams: bool | None = None
    model_registry: str | None = None

    @model_serializer(mode="wrap")
    def _given(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        if not self.model_fields_set:
            return {}
        defaults = {name: field.default for name, field in type(self).model_fields.items()}
        return {name: value for name, value in serialize(self).items() if value != defaults[name]}

    def components(self) -> dict[str, Component]:
        """Returns the objects among the arguments, each by its dotted key."""
        found: dict[str, Component] = {}
        if not self.model_fields_set:
            return found
        for name in NAMESPACES:
            value = getattr(self, name)
            if isinstance(value, list):
                found |= {f"trainer.{name}.{index}": part for index, part in enumerate(value)}
            elif isinstance(value, Component):
                found[f"trainer.{name}"] = value
        return found


LIGHTNINGS = ("lightning.pytorch.", "pytorch_lightning.")
"""How a path begins to a class of Lightning, which has two names."""

_LOGGERS_PACKAGES = {
    "WandbLogger": ("wandb",),
    "TensorBoardLogger": ("tensorboard", "tensorboardX"),
    "CometLogger": ("comet_ml",),
    "NeptuneLogger": ("neptune",),
}


def packages_of_logger(class_path: str) -> tuple[str, ...]:
    """Returns the modules that a logger of Lightning's needs one of; none for another logger.

    Without one, a job leaves the logger out.
    """
    is_lightnings = "." not in class_path or class_path.startswith(LIGHTNINGS)
    return _LOGGERS_PACKAGES.get(class_path.rpartition(".")[2], ()) if is_lightnings else ()


NAMESPACES = {
    "callbacks": "callbacks",
    "logger": "loggers",
    "profiler": "profilers",
    "plugins": "plugins",
    "strategy": "strategies",
}
"""The sub-package of lightning.pytorch whose classes an argument may name without their module."""


@dataclass(frozen=True, kw_only=True)
class Argument:
    """What a job makes of one argument of the Trainer.

    use: honoured: given to the Trainer as it is; mapped: another key of the spec, or something that jobs have
    anyway; refused: an error, unless it has Lightning's default. how: to what it is mapped, or the way out.
    """

    use: Literal["honoured", "mapped", "refused"]
    how: str = ""


def _honoured(how: str = "") -> Argument:
    return Argument(use="honoured", how=how)


def _mapped(how: str) -> Argument:
    return Argument(use="mapped", how=how)


def _refused(how: str) -> Argument:
    return Argument(use="refused", how=how)


ARGUMENTS: Mapping[str, Argument] = {
    "accelerator": _mapped("`gpu` and `cuda` set `resources.gpus_per_worker` to 1, `cpu` to 0"),
    "strategy": _mapped(
        "every form of DDP, and `single_device`, is the job's own strategy, which needs none of their options"
    ),
    "devices": _mapped(
        "the default of `resources.workers`; and a global batch is a batch of the data's own loader for each "
        "of them, however many workers there are"
    ),
    "num_nodes": _mapped("multiplies `devices`; the workers are placed where there is room"),
    "precision": _mapped("`training.precision`; `16` and `16-mixed` without a GPU are `bf16-mixed`"),
    "logger": _honoured(
        "beside MLflow, on worker 0; `MLFlowLogger` and `true` are the job's own; a logger is left out, and "
        "a note says so, if its package is not there: name it in `environment.requirements`"
    ),
    "callbacks": _honoured(
        "progress bars are left out: `syncbn show` has the progress; `LearningRateFinder` and "
        "`BatchSizeFinder` are refused"
    ),
    "fast_dev_run": _refused("set trainer.limit_train_batches: 1 and training.max_epochs: 1"),
    "max_epochs": _mapped("`training.max_epochs`"),
    "min_epochs": _honoured(),
    "max_steps": _mapped("`training.max_steps`"),
    "min_steps": _honoured(),
    "max_time": _honoured("counted over all attempts of the job"),
    "limit_train_batches": _honoured("in micro-batches, over all workers"),
    "limit_val_batches": _honoured(),
    "limit_test_batches": _honoured(),
    "limit_predict_batches": _mapped("nothing: a job does not predict"),
    "overfit_batches": _refused(
        "set trainer.limit_train_batches, and shuffle: false in the loader of the data to train on"
    ),
    "val_check_interval": _honoured(
        "a time and 0 are refused: give a number of batches, or a part of the epoch"
    ),
    "check_val_every_n_epoch": _honoured(),
    "num_sanity_val_steps": _honoured("0 if it is not given"),
    "log_every_n_steps": _honoured("1 if it is not given"),
    "enable_checkpointing": _honoured("about your own checkpoints; the job writes its own in any case"),
    "enable_progress_bar": _mapped("nothing: `syncbn show` and the log have the progress"),
    "enable_model_summary": _honoured("`false` if it is not given"),
    "accumulate_grad_batches": _mapped("`training.accumulate_grad_batches`"),
    "gradient_clip_val": _honoured(),
    "gradient_clip_algorithm": _honoured(),
    "deterministic": _honoured("`true` on GPUs with `training.reproducible: bits` if it is not given"),
    "benchmark": _honoured("`true` is refused with `training.reproducible: bits`"),
    "inference_mode": _honoured(),
    "use_distributed_sampler": _mapped(
        "`true` is what jobs do; `false` is refused beside `training.sampler: global`, and what `own` does"
    ),
    "profiler": _honoured("its files are kept with the job's"),
    "detect_anomaly": _honoured(),
    "barebones": _refused("leave it out"),
    "plugins": _honoured(
        "for precision; a job has its own cluster environment, checkpoint IO and layer sync"
    ),
    "sync_batchnorm": _mapped(
        "`true` is `norm.kind: sync_batch_norm`, the default; `false` changes nothing: see `norm.kind`"
    ),
    "reload_dataloaders_every_n_epochs": _honoured(),
    "default_root_dir": _mapped("nothing: files go into the job's folder"),
    "enable_autolog_hparams": _honoured(),
    "model_registry": _refused("set tracking.register_as, which names the model in MLflow's registry"),
}
"""What becomes of each argument of Lightning's Trainer, by its name: honoured, another key, or refused."""
