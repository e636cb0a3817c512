"""Specs made of several documents: files of which later ones win, overrides, and references to variables."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from training.spec.errors import Problem, SpecError
from training.spec.trainer import NAMESPACES

CLASSES = ("model", "data", "optimizer", "lr_scheduler", "loss")
"""Keys of a spec that hold a class and its arguments."""
_SUBCOMMANDS = {"fit", "validate", "test", "predict"}
OF_A_CLASS = {"class_path", "init_args", "dict_kwargs", "interval"}
"""Keys of such a class beside which there are no arguments."""
_REFERENCE = re.compile(
    r"\$\{(?:oc\.env:(?P<env>[A-Za-z_]\w*)(?:,(?P<default>[^}]*))?|(?P<name>[A-Za-z_][\w.]*))\}"
)


def is_lightnings(data: Any) -> bool:
    """Returns whether a document is a configuration of LightningCLI, or a spec with arguments of its Trainer.

    What such a document does not give has Lightning's default.
    """
    return isinstance(data, Mapping) and ("seed_everything" in data or bool(data.get("trainer")))


def of_fit(data: Any) -> Any:
    """Returns the section for `fit` of a configuration with one for each subcommand; others as they are."""
    inner = data.get("fit") if isinstance(data, Mapping) else None
    if not isinstance(inner, Mapping):
        return data
    return {**{key: value for key, value in data.items() if key not in _SUBCOMMANDS}, **inner}


def with_files(data: Any, read: Callable[[str, str], Any]) -> Any:
    """Returns the document with `read(key, file)` in place of each file that a key names, as in LightningCLI.

    Such a key holds a class, the Trainer's arguments, or one or more objects that are given to the Trainer.
    """
    if not isinstance(data, Mapping):
        return data
    made = {key: _content(key, value, read) if key in CLASSES else value for key, value in data.items()}
    trainer = data.get("trainer")
    if isinstance(trainer, str):
        made["trainer"] = read("trainer", trainer)
    elif isinstance(trainer, Mapping):
        made["trainer"] = {
            name: _content(f"trainer.{name}", value, read) if name in NAMESPACES else value
            for name, value in trainer.items()
        }
    return made


def _content(key: str, value: Any, read: Callable[[str, str], Any]) -> Any:
    if isinstance(value, list):
        return [_content(f"{key}.{index}", each, read) for index, each in enumerate(value)]
    is_file = isinstance(value, str) and ("/" in value or value.endswith((".yaml", ".yml", ".json")))
    return read(key, value) if is_file else value


def merged(earlier: Any, later: Any) -> Any:
    """Returns both documents in one; where they differ, `later` wins. Mappings are merged key by key.

    A class that replaces another keeps its arguments, as in LightningCLI; one that it does not take is
    refused when the class is checked.
    """
    if not isinstance(earlier, Mapping) or not isinstance(later, Mapping):
        return later
    return {**earlier, **{key: merged(earlier.get(key), value) for key, value in later.items()}}


def is_override(argument: str) -> bool:
    """Returns whether a word of the command line is an override as LightningCLI takes it: --trainer.x=1."""
    name = argument.partition("=")[0]
    return name.startswith("--") and (
        "." in name or name[2:] in {*CLASSES, "trainer", "seed_everything", "ckpt_path"}
    )


def overridden(data: Any, overrides: Sequence[tuple[str, Any]]) -> Any:
    """Returns the document with overrides in LightningCLI's form applied in order.

    "model" takes the path of a class, "model.lr" its argument lr, "trainer.callbacks+" an item to append, and
    "trainer.callbacks.patience" an argument of the last item.
    """
    for path, value in overrides:
        data = _set(data, _keys(path.removesuffix("+")), value, append=path.endswith("+"))
    return data


def _keys(path: str) -> list[str]:
    first, *rest = path.split(".")
    if first in CLASSES and rest and rest[0] not in OF_A_CLASS:
        return [first, "init_args", *rest]
    return [first, *rest]


def _set(data: Any, keys: Sequence[str], value: Any, *, append: bool) -> Any:
    if not keys:
        if append:
            return [*data, value] if isinstance(data, list) else [value] if data is None else [data, value]
        return {"class_path": value} if isinstance(value, str) and _is_class(data) else value
    if isinstance(data, list) and data:
        return [*data[:-1], _set(data[-1], keys, value, append=append)]
    if isinstance(data, str):
        data = {"class_path": data}
    if _is_class(data) and keys[0] not in OF_A_CLASS:
        keys = ["init_args", *keys]
    here = dict(data) if isinstance(data, Mapping) else {}
    if keys[0] == "init_args" and here and not here.keys() & OF_A_CLASS:
        return _set(here, keys[1:], value, append=append)  # arguments beside which no class is named
    new = _set(here.get(keys[0]), keys[1:], value, append=append)
    if keys[0] in CLASSES and len(keys) == 1 and isinstance(here.get(keys[0]), Mapping):
        new = _with_arguments(here[keys[0]], new)
    return {**here, keys[0]: new}


def _is_class(data: Any) -> bool:
    return isinstance(data, Mapping) and "class_path" in data


def _with_arguments(before: Mapping[str, Any], new: Any) -> Any:
    """Returns a class that replaces `before`, whose arguments it keeps if no class was named there."""
    named = {"class_path": new} if isinstance(new, str) else new
    if not isinstance(named, Mapping):
        return new
    if "class_path" in before:
        return merged(before, named)
    return {**named, "init_args": before.get("init_args", before)}


def resolved(data: Any, variables: Mapping[str, str]) -> Any:
    """Returns the document with ${NAME} and ${oc.env:NAME,default} replaced by variables, ${a.b} by a value.

    Raises SpecError for one that is not known.
    """
    problems: list[Problem] = []
    made = _resolved(data, data, variables, (), problems)
    if problems:
        raise SpecError(problems)
    return made


def references(data: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, str]]:
    """Yields the dotted key and the text of each value with a reference to a variable."""
    if isinstance(data, Mapping):
        for key, value in data.items():
            yield from references(value, (*path, str(key)))
    elif isinstance(data, list):
        for index, value in enumerate(data):
            yield from references(value, (*path, str(index)))
    elif isinstance(data, str) and _REFERENCE.search(data):
        yield ".".join(path), data


def _resolved(
    value: Any, root: Any, variables: Mapping[str, str], path: tuple[str, ...], problems: list[Problem]
) -> Any:
    if isinstance(value, Mapping):
        return {
            key: _resolved(each, root, variables, (*path, str(key)), problems) for key, each in value.items()
        }
    if isinstance(value, list):
        return [
            _resolved(each, root, variables, (*path, str(index)), problems)
            for index, each in enumerate(value)
        ]
    if not isinstance(value, str):
        return value
    found = list(_REFERENCE.finditer(value))
    texts = [_value_of(match, root, variables, ".".join(path), problems) for match in found]
    if found and found[0][0] == value:
        return texts[0]
    for match, text in zip(found, texts, strict=True):
        value = value.replace(match[0], str(text))
    return value


def _value_of(
    match: re.Match[str], root: Any, variables: Mapping[str, str], key: str, problems: list[Problem]
) -> Any:
    from training.spec.text import load_yaml

    name = match["env"] or match["name"]
    if "." not in name and name in variables:
        return load_yaml(variables[name])
    if match["default"] is not None:
        return load_yaml(match["default"])
    value = root
    for part in name.split(".") if match["name"] else ():
        value = value.get(part) if isinstance(value, Mapping) else None
    if match["name"] and value is not None and not isinstance(value, Mapping | list):
        return value
    problems.append(Problem(key=key, message=f"{match[0]}: {name} is not set; set it, or write the value"))
    return None
