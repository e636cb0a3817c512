"""Construction of objects from class paths: model, data, loss, metrics, optimizer."""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from training.errors import BuildError
from training.spec import ClassSpec
from training.spec.arguments import arguments_problem


def construct(spec: ClassSpec, key: str, *args: object) -> Any:
    """Calls the class (or function) of `spec` with `args` and its init_args; returns the result.

    An init_args value {class_path: …, init_args: …} is constructed first, as in LightningCLI.
    Raises BuildError naming `key` if it cannot be imported or does not accept these arguments. Exceptions
    from the constructor itself pass through.
    """
    target = locate(spec.class_path, f"{key}.class_path")
    arguments = {name: _nested(value, f"{key}.init_args.{name}") for name, value in spec.init_args.items()}
    _check_arguments(target, args, arguments, key)
    return target(*args, **arguments)


def locate(class_path: str, key: str) -> Callable[..., Any]:
    """Imports and returns the callable that a class path names. Raises BuildError if there is none."""
    module_name, _, name = class_path.rpartition(".")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # the module exists, but one of its own imports does not
        raise BuildError(
            key, f"there is no module {error.name!r} in the uploaded code or the environment"
        ) from error
    if not hasattr(module, name):
        close = difflib.get_close_matches(name, dir(module), n=1)
        hint = f"; did you mean {module_name}.{close[0]}?" if close else ""
        raise BuildError(key, f"module {module_name!r} has no {name!r}{hint}")
    target = getattr(module, name)
    if not callable(target):
        raise BuildError(key, f"{class_path} is a {type(target).__name__}, not a class")
    return target  # type: ignore[no-any-return]


def _nested(value: object, key: str) -> object:
    if isinstance(value, Mapping) and "class_path" in value and value.keys() <= {"class_path", "init_args"}:
        return construct(ClassSpec.model_validate(value), key)
    return value


def _check_arguments(
    target: Callable[..., Any], args: tuple[object, ...], named: Mapping[str, object], key: str
) -> None:
    try:
        signature = inspect.signature(target)
    except (TypeError, ValueError):  # some C classes have no signature; the call itself will raise
        return
    if problem := arguments_problem(signature, args, named):
        raise BuildError(f"{key}.init_args", problem)
