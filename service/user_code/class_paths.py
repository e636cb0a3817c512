"""Checks that a class path resolves, without importing anything.

Modules are looked up as Python does, the uploaded code first, and read as source. If the source cannot tell
(compiled modules, a module's `__getattr__`, names created at run time), the path is accepted.
"""

from __future__ import annotations

import ast
import difflib
import importlib.util
import io
import threading
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.machinery import BYTECODE_SUFFIXES, EXTENSION_SUFFIXES, ModuleSpec, PathFinder
from pathlib import Path
from typing import Protocol, TypeGuard

from training.spec import ClassSpec, Problem, Spec

_STAR_DEPTH = 5
_MAX_SOURCE = 2**20  # bytes; a syntax tree takes a hundred times its source's memory
_COMPILED = (*EXTENSION_SUFFIXES, *BYTECODE_SUFFIXES)
_parsing = threading.Lock()
"""Python before 3.11.8 and 3.12.2 shares one recursion counter between all parsers: if two threads parse at
once, one may get a SystemError (gh-106905)."""
_MAKES_NAMES = {"globals", "locals", "vars", "exec"}


class ModuleSource(Protocol):
    """Where modules are looked up: the uploaded archive or the environment."""

    def find(self, name: str, parent: Module | None) -> Module | None:
        """Returns the top-level module or the submodule of `parent` with this name, which has no dots."""


@dataclass(frozen=True, kw_only=True)
class Module:
    """A module that was found but not imported. `source`: None if there is no source to read."""

    name: str
    source_: ModuleSource
    is_package: bool
    source: bytes | None
    directories: tuple[str, ...] = ()
    """The directories of its submodules."""

    def submodule(self, name: str) -> Module | None:
        return self.source_.find(name, self) if self.is_package else None


def class_path_problems(spec: Spec, archive: bytes | None) -> list[Problem]:
    """Returns a problem for each class path of the spec that does not resolve.

    archive: the uploaded code; None if there is none.
    """
    sources = _sources(archive)
    messages = ((key, _check(part.class_path, sources)) for key, part in _class_specs(spec))
    return [Problem(key=f"{key}.class_path", message=message) for key, message in messages if message]


def check_class_path(class_path: str, archive: bytes | None = None) -> str | None:
    """Returns what is wrong with the path; None if it resolves, or if only importing could tell."""
    return _check(class_path, _sources(archive))


def _sources(archive: bytes | None) -> list[ModuleSource]:
    return [_Archive(archive), _Environment()] if archive else [_Environment()]


def _class_specs(spec: Spec) -> Iterator[tuple[str, ClassSpec]]:
    yield "model", spec.model
    yield "data", spec.data
    yield "loss", spec.loss
    yield from ((f"metrics.{name}", metric) for name, metric in spec.metrics.items())
    if spec.optimizer:
        yield "optimizer", spec.optimizer
    if spec.lr_scheduler:
        yield "lr_scheduler", spec.lr_scheduler


def _check(class_path: str, sources: Sequence[ModuleSource]) -> str | None:
    top, *rest = class_path.split(".")
    if module := _find(top, sources):
        return _follow(module, rest, sources)
    looked = "the uploaded code or the environment" if len(sources) > 1 else "the environment"
    return f"no module named {top!r} in {looked}"


def _find(top: str, sources: Sequence[ModuleSource]) -> Module | None:
    return next((module for source_ in sources if (module := source_.find(top, None))), None)


def _follow(module: Module, rest: list[str], sources: Sequence[ModuleSource]) -> str | None:
    """Descends from a module. The first name that is not a submodule must be defined in the module."""
    name, *deeper = rest
    submodule = module.submodule(name)
    if submodule and deeper:
        return _follow(submodule, deeper, sources)
    try:
        names = _names(module, sources, _STAR_DEPTH)
    except SyntaxError as error:
        line = f"line {error.lineno}: " if error.lineno else ""
        return f"module {module.name} does not parse: {line}{error.msg}"
    if names is None or name in names:
        return None
    if submodule:
        return f"{submodule.name} is a module; name a class or a function in it"
    if deeper:
        return f"no module named {module.name}.{name}"
    close = difflib.get_close_matches(name, names, n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    return f"module {module.name} has no {name!r}{hint}"


# Where modules are


class _Archive:
    def __init__(self, data: bytes) -> None:
        self._zip = zipfile.ZipFile(io.BytesIO(data))
        self._files = set(self._zip.namelist())

    def find(self, name: str, parent: Module | None) -> Module | None:
        """Looks for a package, then a module, then a directory without __init__.py, as Python does."""
        dotted = f"{parent.name}.{name}" if parent else name
        path = dotted.replace(".", "/")
        if f"{path}/__init__.py" in self._files:
            return self._module(dotted, f"{path}/__init__.py", is_package=True)
        if f"{path}.py" in self._files:
            return self._module(dotted, f"{path}.py", is_package=False)
        if any(file.startswith(f"{path}.") and file.endswith(_COMPILED) for file in self._files):
            return Module(name=dotted, source_=self, is_package=False, source=None)
        if any(file.startswith(f"{path}/") for file in self._files) and not _is_regular(dotted):
            return Module(name=dotted, source_=self, is_package=True, source=b"")
        return None

    def _module(self, name: str, file: str, *, is_package: bool) -> Module:
        return Module(name=name, source_=self, is_package=is_package, source=self._zip.read(file))


def _is_regular(dotted: str) -> bool:
    """Returns whether the environment has a regular package or module of this name.

    Python prefers it to a directory without __init__.py, wherever it is on the path.
    """
    module = None if "." in dotted else _Environment().find(dotted, None)
    return module is not None and module.source != b""


class _Environment:
    def find(self, name: str, parent: Module | None) -> Module | None:
        if parent is None:
            spec = _top_level(name)
            return self._module(name, spec) if spec else None
        # Only the last part of the name: for a full name the finder would need the parent imported.
        spec = PathFinder.find_spec(name, list(parent.directories))
        return self._module(f"{parent.name}.{name}", spec) if spec else None

    def _module(self, name: str, spec: ModuleSpec) -> Module:
        directories = spec.submodule_search_locations
        return Module(
            name=name,
            source_=self,
            is_package=directories is not None,
            source=_source(spec),
            directories=tuple(directories or ()),
        )


def _top_level(name: str) -> ModuleSpec | None:
    """Asks all finders, including those of editable installs. Imports nothing if the name has no dots."""
    try:
        return importlib.util.find_spec(name)
    except ValueError:  # modules like __main__ are in sys.modules without a spec
        return None


def _source(spec: ModuleSpec) -> bytes | None:
    if spec.origin is None and spec.submodule_search_locations is not None:
        return b""  # a namespace package has no names of its own
    if spec.origin is None or not spec.origin.endswith(".py"):
        return None
    return Path(spec.origin).read_bytes()


# What a module's source defines


def _names(module: Module, sources: Sequence[ModuleSource], depth: int) -> set[str] | None:
    """Returns the module's top-level names; None if only running the module could tell."""
    if module.source is None or len(module.source) > _MAX_SOURCE or not depth:
        return None
    try:
        with _parsing:
            tree = ast.parse(module.source)
        return _names_in(tree, module, sources, depth)
    except (RecursionError, MemoryError):  # nested too deeply
        return None


def _names_in(
    tree: ast.Module, module: Module, sources: Sequence[ModuleSource], depth: int
) -> set[str] | None:
    if _is_dynamic(tree):
        return None
    names: set[str] = set()
    for node in _top_level_nodes(tree):
        new = _starred(node, module, sources, depth) if _is_star(node) else _defined(node)
        if new is None:
            return None
        names |= new
    return names


def _is_dynamic(tree: ast.Module) -> bool:
    """Returns whether the module may have names that its source does not define."""
    if any(isinstance(node, ast.FunctionDef) and node.name == "__getattr__" for node in tree.body):
        return True
    return any(
        (isinstance(node, ast.Name) and node.id in _MAKES_NAMES)
        or (isinstance(node, ast.Attribute) and node.attr == "modules")  # sys.modules[__name__]
        for node in ast.walk(tree)
    )


def _top_level_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """Yields all nodes that run at import, including those in if, try, with and loops, not in definitions."""
    for child in ast.iter_child_nodes(node):
        yield child
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda):
            yield from _top_level_nodes(child)


def _defined(node: ast.AST) -> set[str]:
    match node:
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            return {name}
        case ast.Import(names=aliases):
            return {alias.asname or alias.name.partition(".")[0] for alias in aliases}
        case ast.ImportFrom(names=aliases):
            return {alias.asname or alias.name for alias in aliases}
        case ast.Name(id=name, ctx=ast.Store()):
            return {name}
    return set()


def _is_star(node: ast.AST) -> TypeGuard[ast.ImportFrom]:
    return isinstance(node, ast.ImportFrom) and any(alias.name == "*" for alias in node.names)


def _starred(
    node: ast.ImportFrom, module: Module, sources: Sequence[ModuleSource], depth: int
) -> set[str] | None:
    """Returns the names that `from x import *` may bring in; None if that cannot be followed."""
    base = module.name.split(".") if node.level else []
    up = node.level - module.is_package if node.level else 0
    parts = [*base[: len(base) - up], *(node.module.split(".") if node.module else [])]
    source = _find(parts[0], sources) if parts else None
    for part in parts[1:]:
        source = source and source.submodule(part)
    return _names(source, sources, depth - 1) if source else None
