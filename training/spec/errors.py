"""Error messages for invalid specs: each names the key, the value and what to do."""

from __future__ import annotations

import difflib
import re
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

_OTHER_FORMS = {
    "int_type",
    "float_type",
    "string_type",
    "bool_type",
    "list_type",
    "model_type",
    "literal_error",
}
_BRANCHES = {
    "WorkerRange",
    "ValueRange",
    "Component",
    "int",
    "float",
    "str",
    "bool",
    "constrained-int",
    "constrained-str",
}
OTHER_NAMES = {
    **dict.fromkeys(("tag", "tags", "annotations"), "labels"),
    **dict.fromkeys(("timeout", "max_time", "walltime", "time", "deadline"), "time_limit"),
    **dict.fromkeys(("max_retries", "restarts", "backoffLimit"), "retries"),
    **dict.fromkeys(("env", "environ"), "environment"),
    **dict.fromkeys(("env_vars", "variables"), "environment.variables"),
    **dict.fromkeys(("pip", "packages", "requirements"), "environment.requirements"),
    **dict.fromkeys(("secret", "secrets"), "environment.secrets"),
    **dict.fromkeys(("network", "net", "module"), "model"),
    **dict.fromkeys(("dataset", "datamodule"), "data"),
    **dict.fromkeys(("epochs", "num_epochs", "max_epochs"), "training.max_epochs"),
    **dict.fromkeys(("steps", "num_steps", "max_steps"), "training.max_steps"),
    **dict.fromkeys(("batch_size", "batchsize", "global_batch_size"), "training.global_batch_size"),
    **dict.fromkeys(("seed", "random_seed"), "training.seed"),
    **dict.fromkeys(("precision", "dtype"), "training.precision"),
    **dict.fromkeys(("num_workers", "world_size", "replicas", "nproc_per_node"), "resources.workers"),
    **dict.fromkeys(("workers", "devices", "num_nodes"), "resources.workers"),
    **dict.fromkeys(("gpu", "gpus", "num_gpus"), "resources.gpus_per_worker"),
    **dict.fromkeys(("cpu", "cpus", "num_cpus"), "resources.cpus_per_worker"),
    **dict.fromkeys(("mem", "memory"), "resources.memory_per_worker"),
    **dict.fromkeys(("node_selector", "nodeSelector"), "resources.node_labels"),
    **dict.fromkeys(("lr", "learning_rate"), "optimizer.init_args.lr"),
    **dict.fromkeys(("experiment", "experiment_name"), "tracking.experiment"),
    **dict.fromkeys(("resume_from", "checkpoint", "ckpt_path"), "start_from"),
}
"""By what other programs, or people, call it: the dotted key of a spec."""

MAX_PROBLEMS = 50
"""Maximum number of problems in a SpecError; a document can have a hundred thousand."""


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One error in a spec.

    key: the dotted path of the offending key; "" for the spec as a whole. message: what is wrong with it and
    what to do.
    """

    key: str
    message: str

    def __str__(self) -> str:
        return f"{self.key}: {self.message}" if self.key else self.message


class SpecError(ValueError):
    """The spec is not valid. problems: one Problem for each offending key; the message joins them."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = list(problems)
        super().__init__("; ".join(map(str, self.problems)))


class LocatedError(ValueError):
    """An error of a validator that names its key itself, since pydantic would report the key of the model."""

    def __init__(self, key: str, message: str) -> None:
        super().__init__(message)
        self.key = key


def located(key: str, message: str) -> LocatedError:
    """Returns the error for a validator to raise about the key with dotted path `key`."""
    return LocatedError(key, message)


def problems_of(error: ValidationError, root: type[BaseModel]) -> list[Problem]:
    """Returns one Problem per key from pydantic's error, at most MAX_PROBLEMS.

    root: the model that was validated.
    """
    problems: dict[str, Problem] = {}
    other_forms: dict[
        str, Problem
    ] = {}  # where a key takes several, one problem is in the form that was used
    for item in error.errors():
        if len(problems) == MAX_PROBLEMS:
            break
        cause = item.get("ctx", {}).get("error")
        *above, last = item["loc"] or ("",)
        # The last part of an unknown key's location is the key itself, whatever it looks like.
        is_key = item["type"] == "extra_forbidden" or not _is_branch(last)
        location = [part for part in above if not _is_branch(part)] + [last] * is_key
        key = cause.key if isinstance(cause, LocatedError) else ".".join(map(str, location))
        is_other = item["type"] in _OTHER_FORMS and isinstance(item["input"], Mapping | list)
        found = other_forms if is_other else problems
        found.setdefault(key, Problem(key=key, message=_message(dict(item), location, root)))
    for key, problem in other_forms.items():
        if len(problems) < MAX_PROBLEMS and not any(f"{each}.".startswith(f"{key}.") for each in problems):
            problems[key] = problem
    return list(problems.values())


def _is_branch(part: int | str) -> bool:
    """Whether a part of pydantic's location is the name of a union's member, not a key."""
    return isinstance(part, str) and (part in _BRANCHES or "[" in part)


def _message(item: dict[str, Any], location: list[int | str], root: type[BaseModel]) -> str:
    if item["type"] == "extra_forbidden":
        return _unknown_key(location, root)
    if item["type"] == "missing":
        return "is required"
    message = re.sub(r"^(Value error, |Input )", "", item["msg"])
    if item["type"] == "value_error":
        return message
    if location and location[-1] == "workers":
        message = "should be a number of workers, or a mapping {min: 1, max: 4}"
    elif location and location[-1] == "class_path" and item["type"] == "string_pattern_mismatch":
        message = "should be a dotted path such as package.module.Class"
    return f"{message}; got {_shortened(item.get('input'))}"


def _shortened(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _unknown_key(location: list[int | str], root: type[BaseModel]) -> str:
    if meant := _meant(location, root):
        return f"unknown key; did you mean {meant}?"
    known = _keys_beside(location, root)
    close = difflib.get_close_matches(str(location[-1]), known, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]}?" if close else f"known here: {', '.join(known)}"
    return f"unknown key; {hint}"


def _meant(location: list[int | str], root: type[BaseModel]) -> str:
    """Returns the key, seen from the unknown one, that other programs call so; "" if none is known."""
    *above, key = map(str, location)
    meant = OTHER_NAMES.get(key, "")
    if meant.partition(".")[0] not in root.model_fields:
        return ""  # not a spec
    return meant.removeprefix(f"{'.'.join(above)}." if above else "")


def _keys_beside(location: list[int | str], root: type[BaseModel]) -> list[str]:
    model = root
    for part in location[:-1]:
        model = _model_of(model.model_fields.get(str(part))) or model
    return list(model.model_fields)


def _model_of(field: FieldInfo | None) -> type[BaseModel] | None:
    """The pydantic model inside a field's annotation, through unions and dict values."""
    pending: list[Any] = [field.annotation] if field else []
    while pending:
        annotation = pending.pop()
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            return annotation
        pending.extend(typing.get_args(annotation))
    return None
