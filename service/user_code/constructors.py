"""What a constructor takes, and which bases a class has, read from the source without importing it."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from pathlib import Path

from service.user_code.modules import Module, ModuleSource, find_module, python_files, sources_of
from service.user_code.signatures import definition
from training.spec.short_names import modules_defining

_MOST_CLASSES = 20
"""Maximum number of classes that are read on the way up from one; a class can have a thousand bases."""
_BASES_WITHOUT_ARGUMENTS = {"LightningModule", "LightningDataModule", "Module", "object"}
_Seen = set[tuple[str, str]]


def parameters_of(class_path: str, code: bytes | Path) -> frozenset[str] | None:
    """Returns the names that a class or function takes; None if only importing could tell.

    Those that **kwargs hands on to a base class count. code: the archive of the uploaded code, or a folder in
    its place.
    """
    sources = sources_of(code)
    found = _find(class_path, code, sources)
    return _parameters(*found, sources, set()) if found else None


def is_lightning_module(class_path: str, code: bytes | Path | None) -> bool:
    """Returns whether a class is known to be derived from LightningModule."""
    sources = sources_of(code)
    found = _find(class_path, code, sources)
    return found is not None and _is_derived(*found, sources, set())


def _find(
    class_path: str, code: bytes | Path | None, sources: Sequence[ModuleSource]
) -> tuple[Module, str] | None:
    """Returns the module that a class path names, and the name in it."""
    if not all(part.isidentifier() for part in class_path.split(".")):
        return None  # an argument may be anything
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


def _parameters(
    module: Module, name: str, sources: Sequence[ModuleSource], seen: _Seen
) -> frozenset[str] | None:
    if (module.name, name) in seen:
        return frozenset()
    node, module = _definition(module, name, sources, seen) or (None, module)
    if isinstance(node, ast.FunctionDef):
        return None if node.decorator_list or node.args.kwarg else _names(node)
    if node is None or node.decorator_list or node.keywords:
        return None
    methods = {each.name: each for each in node.body if isinstance(each, ast.FunctionDef)}
    initializer = methods.get("__init__")
    if "__new__" in methods or (initializer and initializer.decorator_list):
        return None
    own = _names(initializer) if initializer else frozenset()
    if initializer and not initializer.args.kwarg:
        return own
    for base in _bases(node):
        if base.rpartition(".")[2] not in _BASES_WITHOUT_ARGUMENTS:
            inherited = _parameters(module, base, sources, seen)
            if inherited is None:
                return None
            own |= inherited
    return own


def _is_derived(module: Module, name: str, sources: Sequence[ModuleSource], seen: _Seen) -> bool:
    if (module.name, name) in seen:
        return False
    node, module = _definition(module, name, sources, seen) or (None, module)
    return isinstance(node, ast.ClassDef) and any(
        base.rpartition(".")[2] == "LightningModule" or _is_derived(module, base, sources, seen)
        for base in _bases(node)
    )


def _definition(
    module: Module, name: str, sources: Sequence[ModuleSource], seen: _Seen
) -> tuple[ast.ClassDef | ast.FunctionDef, Module] | None:
    seen.add((module.name, name))
    try:
        return definition(module, name, sources) if len(seen) <= _MOST_CLASSES else None
    except SyntaxError:
        return None


def _names(node: ast.FunctionDef) -> frozenset[str]:
    return frozenset(each.arg for each in (*node.args.args, *node.args.kwonlyargs))


def _bases(node: ast.ClassDef) -> list[str]:
    """Returns the bases as they are written, such as L.LightningModule."""
    return [ast.unparse(base) for base in node.bases]
