"""Arguments that a program's LightningCLI would fill in from others: a job runs no such program."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from service.user_code.constructors import parameters_of
from service.user_code.modules import python_files
from training.spec import ARGUMENTS, Problem, Spec

_HOLDERS = ("model", "data", "optimizer", "lr_scheduler")


@dataclass(frozen=True, kw_only=True)
class _Link:
    """A call of `parser.link_arguments`.

    source: "" if there are several, or if it is known only to the program.
    """

    source: str
    target: str
    file: str
    is_plain: bool
    """Whether the target gets the value of the source as it is."""


def link_problems(spec: Spec, code: bytes | Path) -> list[Problem]:
    """Returns a problem for each linked argument that a class of the spec takes and the spec does not give.

    code: the archive of the uploaded code, or a folder in its place. It may have several programs, and links
    to arguments of classes that are not in the spec.
    """
    given = spec.model_dump(mode="json")

    @cache
    def parameters(class_path: str) -> frozenset[str] | None:
        return parameters_of(class_path, code)

    return [
        _problem(link, given)
        for path, source in python_files(code)
        for link in _links(path, source)
        if _can_be_given(link.target, given)
        and not _found(_keys(link.target), given)[0]
        and _is_taken(_keys(link.target), given, parameters)
    ]


def _problem(link: _Link, given: Mapping[str, Any]) -> Problem:
    is_known, value = _found(_keys(link.source), given) if link.is_plain else (False, None)
    known = f": {value!r}" if is_known else ""
    return Problem(
        key=".".join(_keys(link.target)),
        message=f"{link.file} links it to {link.source or 'other arguments'}, and a job does not run that "
        f"program; write its value here{known}",
    )


def _can_be_given(target: str, given: Mapping[str, Any]) -> bool:
    holder, _, name = target.partition(".")
    if holder == "trainer":  # the others have moved to keys of their own
        return name in ARGUMENTS and ARGUMENTS[name].use == "honoured"
    return holder in _HOLDERS and bool(name) and given.get(holder) is not None


def _is_taken(keys: Sequence[str], given: Any, parameters: Callable[[str], frozenset[str] | None]) -> bool:
    """Returns whether the classes on the way to an argument take what leads there, as far as is known."""
    for key in (key for key in keys if key != "init_args"):
        if not isinstance(given, Mapping):
            return True
        if isinstance(class_path := given.get("class_path"), str):
            known = parameters(class_path)
            if known is not None and key not in known:
                return False
            given = given.get("init_args", {})
        given = given.get(key)
    return True


def _keys(path: str) -> list[str]:
    """Returns the keys that lead to an argument, which LightningCLI may name without init_args."""
    holder, *rest = path.split(".")
    short = holder in _HOLDERS and rest[:1] != ["init_args"]
    return [holder, "init_args", *rest] if short else [holder, *rest]


def _found(keys: Sequence[str], given: Any) -> tuple[bool, Any]:
    """Returns whether a document has a value at these keys, and the value."""
    for key in keys:
        if isinstance(given, Mapping) and "class_path" in given and key not in given:
            given = given.get("init_args", {})
        if not isinstance(given, Mapping) or key not in given:
            return False, None
        given = given[key]
    return True, given


def _links(path: str, source: str) -> Iterator[_Link]:
    if "link_arguments" not in source:
        return
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            given = dict(zip(("source", "target", "compute_fn", "apply_on"), node.args, strict=False))
            given |= {keyword.arg: keyword.value for keyword in node.keywords if keyword.arg}
            target = _text(given.get("target"))
            if node.func.attr == "link_arguments" and target:
                is_plain = not given.keys() & {"compute_fn", "apply_on"}
                source_ = _text(given.get("source"))
                yield _Link(source=source_, target=target, file=path, is_plain=is_plain and bool(source_))


def _text(node: ast.AST | None) -> str:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""
