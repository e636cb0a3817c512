"""A configuration of LightningCLI as a spec: where each of its keys goes, and what is said about it.

A spec's `trainer:` is read the same way.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Set
from typing import Any

import yaml
from pydantic import ValidationError

from training.spec.errors import Problem, SpecError, problems_of
from training.spec.layers import CLASSES, OF_A_CLASS, is_lightnings, of_fit, references, with_files
from training.spec.lightning_values import (
    CHANGING,
    PRECISIONS,
    REMOVED,
    component_problems,
    hydra_targets,
    number_of_devices,
    seed_problem,
    strategy_problem,
)
from training.spec.norm import SYNCHRONIZED
from training.spec.trainer import ARGUMENTS, Component, TrainerOptions

_SHORT = {"optimizer": "torch.optim", "lr_scheduler": "torch.optim.lr_scheduler"}
_EXAMPLES = {"optimizer": "Adam", "lr_scheduler": "StepLR"}
_EPOCHS_OF_LIGHTNING = 1000


def as_spec(data: Mapping[str, Any], *, known: Set[str]) -> tuple[dict[str, Any], list[str]]:
    """Returns the document as a spec, and sentences about what it means here. Does not validate the spec.

    known: the keys of a spec. Raises SpecError for what cannot be honoured, and for a value that is given
    twice and differs.
    """
    reading = _Reading(data, known)
    reading.read()
    if reading.problems:
        raise SpecError(reading.problems)
    return reading.spec, reading.notes


class _Reading:
    """One document while it is read. `problems` and `notes` are collected."""

    def __init__(self, data: Mapping[str, Any], known: Set[str]) -> None:
        self._known = known
        self.spec: dict[str, Any] = dict(of_fit(data))
        self.notes: list[str] = []
        self.problems: list[Problem] = []

    def read(self) -> None:
        self._refuse_hydra()
        self.spec = with_files(self.spec, self._refuse_file)
        is_configuration = is_lightnings(self.spec)
        for key in CLASSES:
            if key in self.spec:
                self.spec[key] = self._class_spec(key, self.spec[key], is_configuration=is_configuration)
        self._read_seed()
        self._read_checkpoint()
        if is_configuration:
            if "model" in self.spec:
                self.spec.setdefault("data", None)  # the model's own loaders
            self._refuse_own_keys()
            for key, text in references(self.spec):
                self._refuse(
                    key,
                    f"{text} refers to a variable, which `syncbn submit` would replace from its environment; "
                    "write the value",
                )
        if is_configuration and not self.problems:
            given = self.spec.get("trainer")
            self._read_trainer({} if given is None else given)

    def _refuse_hydra(self) -> None:
        for key, where in hydra_targets(self.spec):
            if key == "trainer":
                self._refuse(
                    "trainer._target_",
                    "is Hydra's; write the Trainer's arguments under trainer, without _target_",
                )
                continue
            self._refuse(
                f"{key}._target_".removeprefix("."),
                "is Hydra's; write class_path for _target_, and put the other keys beside it into init_args: "
                f"{{class_path: {where}, init_args: {{…}}}}",
            )
        if "defaults" in self.spec and isinstance(self.spec["defaults"], list):
            self._refuse("defaults", "is Hydra's list of files; name them with --config, later ones win")

    def _refuse_file(self, key: str, file: str) -> None:
        self._refuse(
            key,
            f"{file} is a file, and `syncbn submit` reads those that a configuration names; write its "
            "content here",
        )

    def _refuse_own_keys(self) -> None:
        for key in sorted(key for key in self.spec if isinstance(key, str) and key not in self._known):
            close = difflib.get_close_matches(key, self._known, n=1, cutoff=0.7)
            self._refuse(
                key,
                f"unknown key; did you mean {close[0]}?"
                if close
                else "is neither an argument of LightningCLI nor a key of a spec. What a program adds to its "
                "own LightningCLI is not known here: do in the model or in the data module what it does, and "
                "leave it out",
            )

    def _class_spec(self, key: str, value: Any, *, is_configuration: bool) -> Any:
        """Returns a class in the form of a spec: by path, with all arguments in init_args."""
        if isinstance(value, str):
            value = {"class_path": value}
        if not isinstance(value, Mapping):
            return value
        value = dict(value)
        if is_configuration and key in {"model", "data"} and not {"class_path", "init_args"} & value.keys():
            self._refuse(
                f"{key}.class_path",
                "is missing: the program of this configuration names the class itself, as in "
                f"LightningCLI(Model, Data); name it with --{key} package.Class, or write {{class_path: "
                "package.Class, init_args: {…}}",
            )
            return value
        if is_configuration and key in _SHORT and "class_path" not in value:
            if arguments := {name: each for name, each in value.items() if name not in OF_A_CLASS}:
                self._refuse_unnamed(key, arguments)
                return {}
            if key == "optimizer":
                self.notes.append("optimizer.class_path is not given, so it is torch.optim.SGD")
        if isinstance(more := value.pop("dict_kwargs", None), Mapping):
            value["init_args"] = {**(value.get("init_args") or {}), **more}
        if value.get("init_args", 0) is None:
            del value["init_args"]
        path = value.get("class_path")
        if key in _SHORT and isinstance(path, str) and "." not in path:
            value["class_path"] = f"{_SHORT[key]}.{path}"
        return value

    def _refuse_unnamed(self, key: str, arguments: Mapping[str, Any]) -> None:
        example = _EXAMPLES[key]
        self._refuse(
            f"{key}.class_path",
            f"is missing; write {{class_path: {example}, init_args: {_shown(arguments)}}}. A program may "
            f"name the class itself, as in parser.add_{key}_args({example}); a job does not run it",
        )

    def _read_seed(self) -> None:
        if "seed_everything" not in self.spec:
            return
        seed = self.spec.pop("seed_everything")
        if isinstance(seed, bool) or seed is None:  # true is 0 with Lightning, and a default here
            if seed is False and self._get("training.seed") is None:
                self.notes.append("seed_everything: false is not possible: a job has a seed, which is 0")
        elif message := seed_problem(seed):
            self._refuse("seed_everything", message)
        else:
            self._move("seed_everything", "training.seed", seed)

    def _read_checkpoint(self) -> None:
        path = self.spec.pop("ckpt_path", None)
        self.spec.pop("weights_only", None)
        if path is None:
            return
        if path in {"best", "last", "hpc"} or str(path).startswith("registry"):
            self._refuse("ckpt_path", f"{path} is not a file; name one, or name a job in start_from.job")
        else:
            self._move("ckpt_path", "start_from", {"path": path, "state": "all"})

    # The Trainer's arguments

    def _read_trainer(self, given: Any) -> None:
        try:
            options = TrainerOptions.model_validate(given)
        except ValidationError as error:
            self.problems += [
                Problem(
                    key=f"trainer.{each.key}".rstrip("."),
                    message=_replacement(each.key, given) or each.message,
                )
                for each in problems_of(error, TrainerOptions)
            ]
            return
        honoured = {name for name, argument in ARGUMENTS.items() if argument.use == "honoured"}
        self.spec["trainer"] = {name: given[name] for name in options.model_dump() if name in honoured}
        self._check_refused(options)
        self._read_logger(options)
        self._read_hardware(options)
        self._read_length(options)
        if (parts := options.accumulate_grad_batches) is not None:
            self._move("trainer.accumulate_grad_batches", "training.accumulate_grad_batches", parts)
        self._read_sync_batchnorm(options.sync_batchnorm)

    def _read_sync_batchnorm(self, wanted: bool | None) -> None:
        own = self._get("norm.kind")
        if wanted and own not in SYNCHRONIZED:
            self._move("trainer.sync_batchnorm", "norm.kind", "sync_batch_norm")
        elif wanted is False and own in SYNCHRONIZED:
            self._refuse("trainer.sync_batchnorm", f"false differs from norm.kind, which is {own}; keep one")
        elif wanted is False and own is None:
            self.notes.append(
                "trainer.sync_batchnorm is false, and BatchNorm layers are synchronized nevertheless; "
                "norm.kind: batch_norm gives each worker statistics of its own, and then results depend on "
                "the number of workers"
            )

    def _check_refused(self, options: TrainerOptions) -> None:
        for name in ("fast_dev_run", "overfit_batches", "barebones", "model_registry"):
            if value := getattr(options, name):
                self._refuse(f"trainer.{name}", f"{value} is not possible in a job; {ARGUMENTS[name].how}")
        if isinstance(options.val_check_interval, str | dict):
            self._refuse(
                "trainer.val_check_interval",
                f"{options.val_check_interval} is a time, and when it has passed differs by worker; give a "
                "number of batches, or a part of the epoch from 0.0 to 1.0",
            )
        if options.val_check_interval == 0:
            self._refuse(
                "trainer.val_check_interval",
                f"{options.val_check_interval} is no interval; 1 validates after each batch, 1.0 after each "
                "epoch, and limit_val_batches: 0 never",
            )
        if options.use_distributed_sampler is False and self._get("training.sampler") != "own":
            self._refuse(
                "trainer.use_distributed_sampler",
                "each batch is shared among the workers here, whatever its sampler; leave this out, or set "
                "training.sampler: own for loaders that differ by worker",
            )
        for key, part in options.components().items():
            for where, message in component_problems(key, part.model_dump()):
                self._refuse(where, message)

    def _read_logger(self, options: TrainerOptions) -> None:
        """Moves what an MLFlowLogger says to `tracking` and `name`, and leaves the other loggers."""
        loggers = options.logger
        if loggers is None or isinstance(loggers, bool):
            if self.spec["trainer"].pop("logger", None) is False:
                self.notes.append("trainer.logger: false is not possible: a job logs to MLflow in any case")
            return
        parts = loggers if isinstance(loggers, list) else [loggers]
        left = []
        for part in parts:
            is_own = part.class_path.rpartition(".")[2] == "MLFlowLogger"
            left.append({"class_path": part.class_path} if is_own else part.model_dump(exclude_defaults=True))
            for name, key in (("experiment_name", "tracking.experiment"), ("run_name", "name")):
                if is_own and isinstance(value := part.init_args.get(name), str):
                    self._move(f"trainer.logger: {name}", key, value)
            if is_own and (others := _without_effect(part.init_args)):
                self.notes.append(
                    f"trainer.logger: of MLFlowLogger, {', '.join(others)} has no effect: a job logs to its "
                    "service's MLflow, or to that of MLFLOW_TRACKING_URI with syncbn train"
                )
        self.spec["trainer"]["logger"] = left

    def _read_hardware(self, options: TrainerOptions) -> None:
        devices = self._number_of_devices(options.devices)
        nodes = options.num_nodes or 1
        strategy = options.strategy
        path = strategy if isinstance(strategy, str) else strategy.class_path if strategy else "auto"
        if message := strategy_problem(path):
            self._refuse("trainer.strategy", message)
        changing = CHANGING & strategy.init_args.keys() if isinstance(strategy, Component) else set()
        for option in sorted(changing):
            self._refuse(
                "trainer.strategy",
                f"{option} changes what is trained, and the job's own strategy has none; leave it out",
            )
        accelerator = options.accelerator or "auto"
        if accelerator not in {"auto", "cpu", "gpu", "cuda"}:
            self._refuse("trainer.accelerator", f"{accelerator}: jobs run on cpu or gpu; name one of these")
        elif accelerator != "auto":
            self._read_accelerator(accelerator)
        self._read_precision(options.precision, accelerator)
        self._set_default("resources.workers", devices * nodes)
        if self._get("training.global_batch_size") is None:
            count = devices * nodes
            self._set_default("training.loader_batches", count)
            if self._get("training.loader_batches") == count:
                of = f"{count} batches" if count > 1 else "one batch"
                self.notes.append(
                    f"a global batch is {of} of the data's own loader (trainer.devices × trainer.num_nodes), "
                    "on any number of workers"
                )

    def _read_accelerator(self, accelerator: str) -> None:
        wanted, own = int(accelerator != "cpu"), self._get("resources.gpus_per_worker")
        if own is not None and bool(own) != bool(wanted):
            self._refuse(
                "trainer.accelerator",
                f"{accelerator} differs from resources.gpus_per_worker, which is {own}; keep one of them",
            )
        self._set_default("resources.gpus_per_worker", wanted)

    def _number_of_devices(self, devices: Any) -> int:
        if devices in (None, "auto", -1, "-1"):
            if devices is not None:
                self.notes.append(f"trainer.devices: {devices} is 1 here; resources.workers says how many")
            return 1
        number = number_of_devices(devices)
        if number is None:
            self._refuse("trainer.devices", "is no number of devices, and no list of different ones")
        return number or 1

    def _read_precision(self, precision: Any, accelerator: str) -> None:
        if precision is None:
            return
        name = PRECISIONS.get(str(precision))
        if name is None:
            self._refuse(
                "trainer.precision",
                f"{precision} is none of {', '.join(sorted(set(PRECISIONS.values())))}; choose one of these",
            )
            return
        gpus = self._get("resources.gpus_per_worker")
        if name == "16-mixed" and not gpus and accelerator not in {"gpu", "cuda"}:
            name = "bf16-mixed"
            self.notes.append(
                f"trainer.precision: {precision} needs a GPU; on the CPU it is bf16-mixed, as in "
                "Lightning. For a GPU set resources.gpus_per_worker=1"
            )
        self._move("trainer.precision", "training.precision", name)

    def _read_length(self, options: TrainerOptions) -> None:
        epochs, steps = options.max_epochs, options.max_steps
        if epochs is not None:
            self._move("trainer.max_epochs", "training.max_epochs", epochs)
        if steps is not None and steps != -1:
            self._move("trainer.max_steps", "training.max_steps", steps)
        own = [self._get(f"training.{key}") for key in ("max_epochs", "max_steps")]
        if own != [None, None]:
            return
        if options.max_time is not None:
            self._set_default("training.max_epochs", -1)
        else:
            self._set_default("training.max_epochs", _EPOCHS_OF_LIGHTNING)
            self.notes.append(
                f"trainer.max_epochs is not given, so it is {_EPOCHS_OF_LIGHTNING}, as with Lightning"
            )

    # Values of the spec

    def _refuse(self, key: str, message: str) -> None:
        self.problems.append(Problem(key=key, message=message))

    def _get(self, path: str) -> Any:
        value: Any = self.spec
        for key in path.split("."):
            value = value.get(key) if isinstance(value, Mapping) else None
        return value

    def _set_default(self, path: str, value: Any) -> None:
        if self._get(path) is None:
            *parents, last = path.split(".")
            here = self.spec
            for key in parents:
                inner = here.get(key)
                if inner is not None and not isinstance(inner, Mapping):
                    return  # validation will say so
                here[key] = dict(inner or {})
                here = here[key]
            here[last] = value

    def _move(self, source: str, path: str, value: Any) -> None:
        """Sets a value of the spec that another key names, unless the spec has it already."""
        own = self._get(path)
        if own is not None and own != value:
            self._refuse(source, f"{value} differs from {path}, which is {own}; keep one of them")
        self._set_default(path, value)


def _replacement(argument: str, given: Mapping[str, Any]) -> str | None:
    """Returns what to write for an argument that Lightning 2 no longer has, or no longer in this form."""
    if argument in REMOVED:
        return f"is an argument of Lightning 1; {REMOVED[argument]}"
    if argument == "accumulate_grad_batches" and isinstance(given[argument], Mapping):
        return (
            "is one number; for one that changes with the epoch write callbacks: [{class_path: "
            f"GradientAccumulationScheduler, init_args: {{scheduling: {_shown(given[argument])}}}}}]"
        )
    return None


def _shown(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10_000).strip()


def _without_effect(arguments: Mapping[str, Any]) -> list[str]:
    """Returns the arguments of an MLFlowLogger that a job does not use, without those that say nothing."""
    return sorted(
        name
        for name, value in arguments.items()
        if name not in {"experiment_name", "run_name"} and value not in (None, "", False, "./mlruns")
    )
