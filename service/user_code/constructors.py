"""What a constructor takes, and which bases a class has, read from the source without importing it."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from pathlib import Path

from service.user_code.modules import Module, ModuleSource, find_module, python_files, sources_of
from service.user_code.signatures import definition
from training.spec.short_names import modules_defining

_DEPTH = 8
"""Maximum number of bases above a class that are followed."""
_BASES_WITHOUT_ARGUMENTS = {"LightningModule", "LightningDataModule", "Module", "object"}


def takes(class_path: str, argument: str, code: bytes | Path) -> bool | None:
    """Returns whether a class or function has a parameter of this name; None if only importing could tell.

    Parameters that **kwargs hands on to a base class count. code: the archive of the uploaded code, or a
    folder in its place.
    """
    sources = sources_of(code)
    found = _find(class_path, code, sources)
    return _takes(*found, argument, sources, _DEPTH) if found else None


def is_lightning_module(class_path: str, code: bytes | Path | None) -> bool:
    """Returns whether a class is known to be derived from LightningModule."""
    sources = sources_of(code)
    found = _find(class_path, code, sources)
    return found is not None and _is_derived(*found, sources, _DEPTH)


def _find(
    class_path: str, code: bytes | Path | None, sources: Sequence[ModuleSource]
) -> tuple[Module, str] | None:
    """Returns the module that a class path names, and the name in it."""
    if "." not in class_path:
        modules = modules_defining(class_path, python_files(code)) if code else []
        if len(modules) != 1:
            return None
        class_path = f"{modules[0]}.{class_path}"
    top, *between, name = class_path.split(".")
    module = find_module(top, sources)
    for part in between:
        module = module and module.submodule(part)
    return (module, name) if module else None


def _takes(
    module: Module, name: str, argument: str, sources: Sequence[ModuleSource], depth: int
) -> bool | None:
    node, module = _definition(module, name, sources, depth) or (None, module)
    if isinstance(node, ast.FunctionDef):
        return _has_parameter(node, argument)
    if node is None or node.decorator_list or node.keywords or "__new__" in _methods(node):
        return None
    if initializer := _methods(node).get("__init__"):
        found = _has_parameter(initializer, argument)
        if found is not None or initializer.decorator_list:
            return found
    inherited = {
        False
        if base.rpartition(".")[2] in _BASES_WITHOUT_ARGUMENTS
        else _takes(module, base, argument, sources, depth - 1)
        for base in _bases(node)
    }
    return True if True in inherited else None if None in inherited else False


def _is_derived(module: Module, name: str, sources: Sequence[ModuleSource], depth: int) -> bool:
    node, module = _definition(module, name, sources, depth) or (None, module)
    return isinstance(node, ast.ClassDef) and any(
        base.rpartition(".")[2] == "LightningModule" or _is_derived(module, base, sources, depth - 1)
        for base in _bases(node)
    )


def _definition(
    module: Module, name: str, sources: Sequence[ModuleSource], depth: int
) -> tuple[ast.ClassDef | ast.FunctionDef, Module] | None:
    try:
        return definition(module, name, sources) if depth else None
    except SyntaxError:
        return None


def _has_parameter(node: ast.FunctionDef, name: str) -> bool | None:
    """Returns whether a function has a parameter of this name; None if it has **kwargs, or a decorator."""
    given = node.args
    if node.decorator_list:
        return None
    if name in {each.arg for each in (*given.args, *given.kwonlyargs)}:
        return True
    return None if given.kwarg else False


def _methods(node: ast.ClassDef) -> dict[str, ast.FunctionDef]:
    return {each.name: each for each in node.body if isinstance(each, ast.FunctionDef)}


def _bases(node: ast.ClassDef) -> list[str]:
    """Returns the bases as they are written, such as L.LightningModule."""
    return [ast.unparse(base) for base in node.bases]
