"""Every public name says what it is: of the layer, the spec and the client."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from pydantic import BaseModel
from pydantic.fields import FieldInfo

import service.client.models
import training.spec.model
from service.client.models import Answer

PACKAGES = ["sync_bn", "training.spec", "service.client"]


def public(package: str) -> dict[str, Any]:
    module = importlib.import_module(package)
    return {name: getattr(module, name) for name in module.__all__}


def undocumented(package: str) -> Iterator[str]:
    for name, value in public(package).items():
        if not callable(value):
            if name not in documented_constants(package):
                yield name
        elif not value.__doc__:
            yield name
        elif inspect.isclass(value):
            yield from (f"{name}.{member}" for member in undocumented_members(value))


def undocumented_members(kind: type) -> Iterator[str]:
    for name, member in vars(kind).items():
        function = getattr(member, "fget", None) or getattr(member, "__func__", member)
        if not name.startswith("_") and inspect.isfunction(function) and not function.__doc__:
            yield name


def documented_constants(package: str) -> set[str]:
    """Names that a string follows, in any module of the package."""
    folder = Path(inspect.getfile(importlib.import_module(package))).parent
    return {
        name
        for path in folder.glob("*.py")
        for statement, after in pairwise(ast.parse(path.read_text(encoding="utf-8")).body)
        if isinstance(statement, ast.Assign | ast.AnnAssign) and isinstance(after, ast.Expr)
        for name in assigned(statement)
    }


def assigned(statement: ast.Assign | ast.AnnAssign) -> list[str]:
    targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
    return [ast.unparse(target) for target in targets]


def fields(
    module: ModuleType, base: type[BaseModel]
) -> Iterator[tuple[str, tuple[type[BaseModel], FieldInfo]]]:
    """Yields the name of each field of the models that a module defines, with its model."""
    for value in vars(module).values():
        if inspect.isclass(value) and issubclass(value, base) and value.__module__ == module.__name__:
            for name, field in value.model_fields.items():
                yield f"{value.__name__}.{name}", (value, field)


@pytest.mark.parametrize("package", PACKAGES)
def test_a_public_name_has_a_docstring(package: str) -> None:
    assert public(package)
    assert list(undocumented(package)) == []


def test_a_key_of_the_spec_has_a_description() -> None:
    found = dict(fields(training.spec.model, BaseModel))
    assert len(found) > 20

    # Of class paths the type says it.
    assert [
        name
        for name, (_, field) in found.items()
        if not field.description and not name.endswith(".class_path")
    ] == []


def test_the_client_says_of_an_answer_what_none_means() -> None:
    found = dict(fields(service.client.models, Answer))
    assert len(found) > 20

    assert [
        name
        for name, (model, field) in found.items()
        if "None" in str(field.annotation)
        and not re.search(rf"\b{name.partition('.')[2]}\b", model.__doc__ or "")
    ] == []
