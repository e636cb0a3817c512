"""Construction of objects from class paths: model, data, loss, metrics, optimizer."""

from __future__ import annotations

import difflib
import importlib
import inspect
import re
from collections.abc import Callable, Mapping, Set
from copy import deepcopy
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin

from training.errors import BuildError
from training.spec import ClassSpec
from training.spec.arguments import arguments_problem
from training.spec.short_names import modules_defining, python_files


def construct(spec: ClassSpec, key: str, *args: object) -> Any:
    """Calls the class (or function) of `spec` with `args` and its init_args; returns the result.

    Values are converted to the types of the signature, and classes in them, {class_path: …, init_args: …} at
    any depth, are constructed first, as in LightningCLI. Raises BuildError naming `key` if something cannot
    be imported or does not accept its arguments. Exceptions from constructors pass through.
    """
    target = locate(spec.class_path, f"{key}.class_path")
    _check_arguments(target, args, spec.init_args, key)
    return target(*args, **typed_arguments(target, spec.init_args, f"{key}.init_args"))


def typed_arguments(target: Callable[..., Any], given: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Returns keyword arguments for `target`, with values and objects of the types that its signature names.

    Raises BuildError, whose key begins with `key`.
    """
    parameters, made = _parameters(target), {}
    for name, value in given.items():
        annotation = parameters[name].annotation if name in parameters else inspect.Parameter.empty
        if _is_open(annotation):
            made[name] = _nested(value, f"{key}.{name}")
        elif _is_plain(value, annotation):
            made[name] = _as_numbers(value, annotation)
    typed = {name: value for name, value in given.items() if name not in made}
    return {**made, **(_parsed(target, typed, parameters.keys() - typed.keys(), key) if typed else {})}


def _parsed(
    target: Callable[..., Any], given: Mapping[str, Any], others: Set[str], key: str
) -> Mapping[str, Any]:
    """Returns the arguments as LightningCLI would make them. others: the parameters that are not given."""
    from jsonargparse import ArgumentError, ArgumentParser, set_parsing_settings

    set_parsing_settings(instantiate_subclass_spec_in_any=True)
    parser = ArgumentParser(exit_on_error=False)
    skip: set[int | str] = set(others)
    if isinstance(target, type):
        added = parser.add_class_arguments(target, "it", fail_untyped=False, skip=skip, instantiate=False)
    else:
        added = parser.add_function_arguments(target, "it", fail_untyped=False, skip=skip)
    # A copy, because the parser puts its own objects into lists of it.
    known = {name: deepcopy(value) for name, value in given.items() if f"it.{name}" in added}
    try:
        made = vars(parser.instantiate(parser.parse_object({"it": known})).it) if known else {}
    except ArgumentError as error:
        raise _argument_error(error, key) from None
    return {name: made[name] if name in known else value for name, value in given.items()}


def _nested(value: Any, key: str) -> Any:
    """Constructs the classes in a value that may be of any type."""
    if isinstance(value, list):
        return [_nested(each, f"{key}.{index}") for index, each in enumerate(value)]
    if not isinstance(value, Mapping):
        return value
    if "class_path" in value and value.keys() <= {"class_path", "init_args", "dict_kwargs"}:
        arguments = {**(value.get("init_args") or {}), **(value.get("dict_kwargs") or {})}
        return construct(ClassSpec(class_path=value["class_path"], init_args=arguments), key)
    return {name: _nested(each, f"{key}.{name}") for name, each in value.items()}


def _parameters(target: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    for resolved in (True, False):
        try:
            return inspect.signature(target, eval_str=resolved).parameters
        except (TypeError, ValueError):  # some C classes have no signature; the call itself will raise
            return {}
        except Exception:  # an annotation names what is imported for type checkers alone; it stays text
            continue
    return {}


def _is_open(annotation: object) -> bool:
    return annotation in (inspect.Parameter.empty, Any, object, "Any", "typing.Any", "object")


def _is_plain(value: object, annotation: object) -> bool:
    """Returns whether numbers or text, also in lists and mappings, are of the type that the parameter has.

    Then there is nothing to convert. The parser would give the same, but takes a time that grows with the
    square of a list's length: minutes for a table of ten thousand numbers.
    """
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in {Union, UnionType}:
        return any(_is_plain(value, each) for each in arguments)
    if origin is list and isinstance(value, list):
        # A whole number in a list of floats is written without a point.
        return all(
            _is_plain(each, arguments[0]) or (arguments[0] is float and type(each) is int) for each in value
        )
    if origin is dict and type(value) is dict:
        return all(
            _is_plain(name, arguments[0]) and _is_plain(each, arguments[1]) for name, each in value.items()
        )
    name = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", "")
    return isinstance(value, bool | int | float | str) and type(value).__name__ == name


def _as_numbers(value: Any, annotation: Any) -> Any:
    """Returns a copy of a plain value. The constructor may change its lists, and the spec stays."""
    if isinstance(value, list | dict):
        of = get_args(next(each for each in _options(annotation) if _is_plain(value, each)))
        if isinstance(value, list):
            return [_as_numbers(each, of[0]) for each in value]
        return {name: _as_numbers(each, of[1]) for name, each in value.items()}
    return float(value) if type(value) is int and annotation is float else deepcopy(value)


def _options(annotation: object) -> tuple[object, ...]:
    return get_args(annotation) if get_origin(annotation) in {Union, UnionType} else (annotation,)


def _argument_error(error: Exception, key: str) -> BuildError:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    where = re.fullmatch(r'Parser key "it\.?(.*)":', lines[0])
    rest = lines[1:] if where else lines
    text = re.sub(r'Parser key "(\w+)":', r"init_args.\1:", " ".join(rest))
    return BuildError(f"{key}.{where[1]}" if where and where[1] else key, text)


def locate_component(class_path: str, namespace: str, key: str) -> str:
    """Returns the whole path of a class that may be named without its module.

    namespace: the module whose classes come before those of the code in the working directory. Raises
    BuildError.
    """
    if "." in class_path:
        return class_path
    if hasattr(importlib.import_module(namespace), class_path):
        return f"{namespace}.{class_path}"
    return _in_code(class_path, key, f"{namespace} or ")


def _in_code(name: str, key: str, elsewhere: str = "") -> str:
    modules = modules_defining(name, python_files(Path.cwd()))
    if len(modules) != 1:
        found = f"{' and '.join(modules)} define" if modules else f"nothing in {elsewhere}the code defines"
        raise BuildError(key, f"{found} {name!r}; write its whole path, as package.module.{name}")
    return f"{modules[0]}.{name}"


def locate(class_path: str, key: str) -> Callable[..., Any]:
    """Imports and returns the callable that a class path names. Raises BuildError if there is none.

    A name without a module is looked up in the code of the working directory.
    """
    if "." not in class_path:
        class_path = _in_code(class_path, key)
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


def _check_arguments(
    target: Callable[..., Any], args: tuple[object, ...], named: Mapping[str, object], key: str
) -> None:
    try:
        signature = inspect.signature(target)
    except (TypeError, ValueError):  # some C classes have no signature; the call itself will raise
        return
    if problem := arguments_problem(signature, args, named):
        raise BuildError(f"{key}.init_args", problem)
