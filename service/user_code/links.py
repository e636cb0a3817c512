"""Arguments that a program's LightningCLI would fill in from others: a job runs no such program."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from training.spec import Problem, Spec

_HOLDERS = ("model", "data", "optimizer", "lr_scheduler")


@dataclass(frozen=True, kw_only=True)
class _Link:
    """A call of `parser.link_arguments`. is_plain: the target gets the value of the source as it is."""

    source: str
    target: str
    file: str
    is_plain: bool


def link_problems(spec: Spec, files: Iterable[tuple[str, str]]) -> list[Problem]:
    """Returns a problem for each linked argument that the spec does not give.

    files: the path and the source of each file of the user's code.
    """
    problems = []
    given = spec.model_dump(mode="json")
    for link in (link for path, source in files for link in _links(path, source)):
        holder, _, name = link.target.partition(".")
        name = name.removeprefix("init_args.")
        part = given.get(holder)
        if holder in _HOLDERS and part is not None and name and name not in part["init_args"]:
            value = _value_at(given, link.source) if link.is_plain else None
            known = f": {value!r}" if value is not None else ""
            problems.append(
                Problem(
                    key=f"{holder}.init_args.{name}",
                    message=f"{link.file} links it to {link.source}, and a job does not run that program; "
                    f"write its value here{known}",
                )
            )
    return problems


def _links(path: str, source: str) -> Iterator[_Link]:
    if "link_arguments" not in source:
        return
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):
        return
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr == "link_arguments"
        ):
            named = {keyword.arg: keyword.value for keyword in node.keywords}
            texts = [*node.args[:2], named.get("source"), named.get("target")]
            names = [each.value for each in texts if isinstance(each, ast.Constant)]
            if len(names) == 2:
                source_, target = map(str, names)
                plain = not named.keys() & {"compute_fn", "apply_on"} and len(node.args) <= 2
                yield _Link(source=source_, target=target, file=path, is_plain=plain)


def _value_at(given: Mapping[str, Any], path: str) -> Any:
    holder, _, name = path.partition(".")
    part = given.get(holder)
    return part["init_args"].get(name.removeprefix("init_args.")) if part and holder in _HOLDERS else None
