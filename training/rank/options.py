"""The arguments of Lightning's Trainer that a spec gives in `trainer:`, as objects."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelSummary, ProgressBar
from lightning.pytorch.loggers.logger import Logger

from training.callbacks.own_checkpoints import KeptFiles
from training.console import say
from training.errors import BuildError
from training.model.instantiate import locate, locate_component, typed_arguments
from training.spec import Component, TrainerOptions
from training.spec.lightning_values import FOLDERS
from training.spec.trainer import NAMESPACES, packages_of_logger

_MLFLOW = "MLFlowLogger"


@dataclass(frozen=True, kw_only=True)
class UserOptions:
    """What the user gives to the Trainer.

    loggers: None stands for the job's own. arguments: the others, by their names.
    """

    callbacks: list[Callback]
    loggers: list[Logger | None]
    plugins: list[Any]
    arguments: dict[str, Any]


def user_options(options: TrainerOptions, files: KeptFiles) -> UserOptions:
    """Constructs the objects that `options` name. Every rank must call it. Raises BuildError.

    files: where loggers write that have no folder of their own, or a relative one.
    """
    given = options.model_dump(mode="json")
    loggers = _loggers(_listed(options.logger), files)
    given.pop("logger", None)
    for name in ("callbacks", "plugins"):
        if name in given:
            given[name] = [_component(name, part) for part in _listed(getattr(options, name))]
    if isinstance(options.profiler, Component):
        given["profiler"] = _kept(_component("profiler", options.profiler), files, "trainer.profiler")
    arguments = typed_arguments(Trainer, given, "trainer")
    callbacks = [each for each in arguments.pop("callbacks", []) if not isinstance(each, ProgressBar)]
    _settle_checkpointing(callbacks, arguments)
    arguments.setdefault("enable_model_summary", any(isinstance(each, ModelSummary) for each in callbacks))
    return UserOptions(
        callbacks=callbacks, loggers=loggers, plugins=arguments.pop("plugins", []), arguments=arguments
    )


def _settle_checkpointing(callbacks: list[Callback], arguments: dict[str, Any]) -> None:
    own = [type(each).__name__ for each in callbacks if isinstance(each, Checkpoint)]
    if own and arguments.get("enable_checkpointing") is False:
        raise BuildError("trainer.enable_checkpointing", f"is false, but trainer.callbacks has {own[0]}")
    arguments.setdefault("enable_checkpointing", bool(own))


def _listed(value: Any) -> list[Component]:
    if value is None or isinstance(value, bool):
        return []
    return value if isinstance(value, list) else [value]


def _component(name: str, part: Component) -> dict[str, Any]:
    path = locate_component(part.class_path, f"lightning.pytorch.{NAMESPACES[name]}", f"trainer.{name}")
    made: dict[str, Any] = {"class_path": path, "init_args": dict(part.init_args)}
    return {**made, "dict_kwargs": dict(part.dict_kwargs)} if part.dict_kwargs else made


def _loggers(parts: list[Component], files: KeptFiles) -> list[Logger | None]:
    loggers: list[Logger | None] = []
    for index, part in enumerate(parts):
        name = part.class_path.rpartition(".")[2]
        packages = packages_of_logger(part.class_path)
        if name == _MLFLOW:
            loggers.append(None)
        elif packages and not any(map(find_spec, packages)):
            say(f"warning: {name} is left out, because the package {packages[0]} is not there")
        else:
            loggers.append(_logger(part, f"trainer.logger.{index}", files))
    return loggers if None in loggers else [*loggers, None]


def _logger(part: Component, key: str, files: KeptFiles) -> Logger:
    component = _kept(_component("logger", part), files, key)
    arguments = component["init_args"]
    takes_folder = "save_dir" in inspect.signature(locate(component["class_path"], key)).parameters
    if takes_folder and arguments.get("save_dir") is None:
        arguments["save_dir"] = str(files.folder)
    made: Logger = typed_arguments(Trainer, {"logger": component}, key.rpartition(".logger")[0])["logger"]
    return made


def _kept(component: dict[str, Any], files: KeptFiles, key: str) -> dict[str, Any]:
    """Makes relative folders that a component is given lead to the kept folder, and makes these folders."""
    for where in ("init_args", "dict_kwargs"):
        arguments = component.get(where, {})
        for name in FOLDERS & arguments.keys():
            if isinstance(folder := arguments[name], str):
                arguments[name] = files.path_of(folder, f"{key}.{where}.{name}")
                if "://" not in folder:
                    Path(arguments[name]).mkdir(parents=True, exist_ok=True)
    return component
