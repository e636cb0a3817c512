"""What values of Lightning's arguments mean here: devices, precisions, strategies, and what is not possible.

Has the arguments of Lightning 1 too, each with what replaced it.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator, Mapping
from typing import Any

PRECISIONS = {
    **dict.fromkeys(("64", "64-true"), "64-true"),
    **dict.fromkeys(("32", "32-true"), "32-true"),
    **dict.fromkeys(("16", "16-mixed"), "16-mixed"),
    **dict.fromkeys(("bf16", "bf16-mixed"), "bf16-mixed"),
}
"""Lightning's names of precisions, and the one of a spec."""

CHANGING = {"ddp_comm_hook", "ddp_comm_wrapper", "model_averaging_period"}
"""Options of DDPStrategy that change the gradients or the weights."""

_JOBS_OWN = re.compile(
    r"auto|DDPStrategy|single_device|SingleDeviceStrategy"
    r"|ddp(_spawn|_fork|_notebook)?(_find_unused_parameters_(true|false))?"
)
_OTHER = re.compile(r"(deepspeed|fsdp|xla|single_xla|single_tpu|dp|ddp2|ddp_sharded|horovod)(_\w+)?")

REMOVED = {
    "gpus": "write accelerator: gpu and devices: N",
    "num_processes": "write accelerator: cpu and devices: N",
    "tpu_cores": "it is accelerator: tpu and devices: N, and jobs run on cpu or gpu; leave it out",
    "auto_select_gpus": "devices: auto replaced it; leave it out, a job gets GPUs that are free",
    "resume_from_checkpoint": "write ckpt_path: FILE beside trainer, or name a job in start_from.job",
    "checkpoint_callback": "write enable_checkpointing",
    "replace_sampler_ddp": "write use_distributed_sampler",
    "progress_bar_refresh_rate": "write enable_progress_bar; the rate is an argument of the callback "
    "TQDMProgressBar, and jobs have no progress bar",
    "weights_summary": "write enable_model_summary: true; the depth is an argument of the callback "
    "ModelSummary",
    "auto_lr_find": "find the rate once with Lightning's Tuner, and write it into the spec",
    "auto_scale_batch_size": "find the size once with Lightning's Tuner, and write it into the spec",
    "amp_backend": "leave it out: torch's own is the only one; write precision: 16-mixed or bf16-mixed",
    "track_grad_norm": "log lightning.pytorch.utilities.grad_norm in the model's on_before_optimizer_step",
    "terminate_on_nan": "write detect_anomaly: true, or the callback EarlyStopping with check_finite: true",
    "stochastic_weight_avg": "write callbacks: [{class_path: StochasticWeightAveraging, init_args: "
    "{swa_lrs: 0.01}}]",
    "weights_save_path": "give dirpath to the callback ModelCheckpoint",
    "amp_level": "leave it out; write precision: 16-mixed or bf16-mixed",
    "flush_logs_every_n_steps": "leave it out; it is an argument of CSVLogger",
    "prepare_data_per_node": "set it in the data module",
    "multiple_trainloader_mode": "return a CombinedLoader with that mode from train_dataloader",
}
"""Arguments of the Trainer that Lightning 2 no longer has: what to do instead."""

_TUNED = {"LearningRateFinder": "rate", "BatchSizeFinder": "size"}


def number_of_devices(devices: int | str | list[int]) -> int | None:
    """Returns how many devices are named; None if it is neither a number nor a list of different ones."""
    if isinstance(devices, int):
        return devices if devices > 0 else None
    if isinstance(devices, str):
        parts = [part.strip() for part in devices.split(",") if part.strip()]
        if not all(part.isdecimal() for part in parts):
            return None
        if "," not in devices:
            return int(devices) if parts and int(devices) else None
        devices = [int(part) for part in parts]
    is_list = devices and min(devices) >= 0 and len(set(devices)) == len(devices)
    return len(devices) if is_list else None


def strategy_problem(path: str) -> str | None:
    """Returns why a job cannot have a strategy, given by its name or the path of its class."""
    name = path.rpartition(".")[2]
    if _JOBS_OWN.fullmatch(name):
        return None
    if "." not in path and not name.endswith("Strategy") and not _OTHER.fullmatch(name):
        return f"{path} is unknown; a job does what ddp or auto do: write one of these, or leave this out"
    return (
        f"{path} divides the model, or changes what is trained; a job trains with DDP on every worker: leave "
        "this out"
    )


def component_problem(argument: str, class_path: str) -> str | None:
    """Returns why a job cannot have a plugin or a callback, and the way out.

    argument: the Trainer's, such as "plugins".
    """
    name = class_path.rpartition(".")[2]
    if argument == "callbacks" and name in _TUNED:
        return (
            f"{class_path} is not possible in a job, since what it finds would depend on the workers; find "
            f"the {_TUNED[name]} once with Lightning itself, and write it into the spec"
        )
    for ending, why in (
        ("Environment", "its workers find each other by themselves"),
        ("CheckpointIO", "it writes checkpoints itself"),
        ("SyncBatchNorm", "norm.kind says how it normalises"),
    ):
        if argument == "plugins" and name.endswith(ending):
            return f"{class_path} is not possible in a job: {why}; leave it out"
    return None


FOLDERS = frozenset({"dirpath", "save_dir", "dir"})
"""Arguments of Lightning's callbacks, loggers and profilers that name a folder to write to."""

LEFT = (
    "leads out of the working directory, and what is written there would not be kept with the job; give a "
    "path within it, or an absolute one"
)
"""Why a path is refused that `leaves_working_directory`."""


def leaves_working_directory(path: str) -> bool:
    """Returns whether a relative path, and no URL, leads out of the directory that it is relative to."""
    return "://" not in path and posixpath.normpath(path).partition("/")[0] == ".."


def component_problems(key: str, component: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yields the key of what a job cannot have of a component, and why.

    key: of the component, such as "trainer.callbacks.0".
    """
    if message := component_problem(key.split(".")[1], component["class_path"]):
        yield key, message
    for where in ("init_args", "dict_kwargs"):
        for name in sorted(FOLDERS & component[where].keys()):
            if isinstance(folder := component[where][name], str) and leaves_working_directory(folder):
                yield f"{key}.{where}.{name}", f"{folder} {LEFT}"


def seed_problem(seed: object) -> str | None:
    """Returns what is wrong with a value of seed_everything."""
    if isinstance(seed, int) and 0 <= seed < 2**32:
        return None
    if isinstance(seed, str) and seed.isdecimal():
        return f"{seed!r} is text; write {seed}, without quotes"
    return f"{seed!r} is no seed; give a number from 0 to 4294967295"


def hydra_targets(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Yields the key and the class of each mapping with Hydra's `_target_`."""
    if isinstance(value, Mapping):
        if "_target_" in value:
            yield key, str(value["_target_"])
        for name, inner in value.items():
            if isinstance(inner, Mapping | list):
                yield from hydra_targets(inner, f"{key}.{name}".removeprefix("."))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from hydra_targets(inner, f"{key}.{index}")
