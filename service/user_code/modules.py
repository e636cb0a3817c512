"""Modules of the uploaded code and of the environment, found and read without importing them.

They are looked up as Python does, the uploaded code first.
"""

from __future__ import annotations

import ast
import asyncio
import hashlib
import importlib.util
import io
import os
import sys
import threading
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from importlib.machinery import BYTECODE_SUFFIXES, EXTENSION_SUFFIXES, ModuleSpec, PathFinder
from pathlib import Path
from typing import Protocol

from training.spec.short_names import python_files as files_in_folder

_MAX_SOURCE = 2**20  # bytes; a syntax tree takes a hundred times its source's memory
_COMPILED = (*EXTENSION_SUFFIXES, *BYTECODE_SUFFIXES)
_parsing = threading.Lock()
"""Python before 3.11.8 and 3.12.2 shares one recursion counter between all parsers: if two threads parse at
once, one may get a SystemError (gh-106905)."""


Stamp = tuple[int, int, int] | None
"""A file's or directory's time of modification, size and inode; None if there is none."""


class Stamps:
    """The stamps of files and directories as they were before anything there was read; each is taken once.

    used: those that were asked for since this was emptied.
    """

    def __init__(self) -> None:
        self._taken: dict[str, Stamp] = {}
        self.used: dict[str, Stamp] = {}

    def of(self, path: str) -> Stamp:
        if path not in self._taken:
            self._taken[path] = _stamp(path)
        self.used[path] = stamp = self._taken[path]
        return stamp

    def are(self, known: Mapping[str, Stamp]) -> bool:
        """Returns whether the stamps are those that are known."""
        taken = self._taken
        for path, stamp in known.items():
            if path not in taken:
                taken[path] = _stamp(path)
            if taken[path] != stamp:
                return False
        return True


class SharedStamps:
    """Stamps for all requests that an event loop has received before it takes them.

    It reads what has arrived, and then answers that. So as it answers several requests in a row, the files of
    the first are looked at after the last had arrived, and need not be looked at again.
    """

    def __init__(self) -> None:
        self._stamps: Stamps | None = None

    def get(self) -> Stamps:
        """Returns the stamps for the request that the running event loop answers now."""
        if self._stamps is None:
            self._stamps = Stamps()
            # This comes after what the loop has received so far, and before all that it receives from now on.
            asyncio.get_running_loop().call_soon(self._forget)
        return self._stamps

    def _forget(self) -> None:
        self._stamps = None


def _stamp(path: str) -> Stamp:
    try:
        found = os.stat(path or ".")  # noqa: PTH116 (a Path takes five times as long)
    except (OSError, ValueError):
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


class ModuleSource(Protocol):
    """Where modules are looked up: the uploaded archive or the environment.

    identity: what tells its content from another's, as the digest of an archive; None: it has none. stamps:
    those of what is read of the environment for it.
    """

    identity: str | None
    stamps: Stamps

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


def sources_of(code: bytes | Path | None) -> list[ModuleSource]:
    """Returns where modules are looked up, in order.

    code: the archive of the uploaded code, or a folder in its place; None if there is none.
    """
    if isinstance(code, Path):
        return [_Folder(code), _Environment()]
    if (stamps := _only_remembered.get()) is not None:
        return [_Remembered(stamps)]
    environment = _Environment()
    return [_Archive(code, environment), environment] if code else [environment]


def python_files(code: bytes | Path) -> Iterator[tuple[str, str]]:
    """Yields the path and the source of each Python file of an uploaded archive, or of a folder."""
    if isinstance(code, Path):
        yield from files_in_folder(code)
        return
    with zipfile.ZipFile(io.BytesIO(code)) as files:
        for entry in files.infolist():
            if entry.filename.endswith(".py") and entry.file_size <= _MAX_SOURCE:
                yield entry.filename, files.read(entry).decode(errors="replace")


def find_module(top: str, sources: Sequence[ModuleSource]) -> Module | None:
    """Returns the top-level module of this name."""
    return next((module for source_ in sources if (module := source_.find(top, None))), None)


def syntax_tree(module: Module) -> ast.Module | None:
    """Returns the module's syntax tree; None if its source cannot be read. Raises SyntaxError."""
    return None if module.source is None else parse(module.source)


def parse(source: bytes) -> ast.Module | None:
    """Returns the syntax tree of a source; None if it is too large. Raises SyntaxError, and ValueError."""
    if len(source) > _MAX_SOURCE:
        return None
    try:
        with _parsing:
            return ast.parse(source)
    except (RecursionError, MemoryError):  # nested too deeply
        return None


def imported_module(node: ast.ImportFrom, module: Module, sources: Sequence[ModuleSource]) -> Module | None:
    """Returns the module that a `from x import y` in `module` imports from; None if there is none."""
    base = module.name.split(".") if node.level else []
    up = node.level - module.is_package if node.level else 0
    parts = [*base[: len(base) - up], *(node.module.split(".") if node.module else [])]
    found = find_module(parts[0], sources) if parts else None
    for part in parts[1:]:
        found = found and found.submodule(part)
    return found


class NotRead(Exception):
    """A module would have to be read within `only_remembered`."""


_only_remembered: ContextVar[Stamps | None] = ContextVar("only_remembered", default=None)


@contextmanager
def only_remembered(stamps: Stamps | None = None) -> Iterator[None]:
    """Within the context, nothing is read of modules, which takes long the first time: it raises NotRead.

    stamps: those of the files now; None: they are taken in the context.
    """
    token = _only_remembered.set(stamps or Stamps())
    try:
        yield
    finally:
        _only_remembered.reset(token)


class _Remembered:
    """The environment when only what is known of it may be used. It has the identity of the environment."""

    identity: str | None = ""

    def __init__(self, stamps: Stamps) -> None:
        self.stamps = stamps

    def find(self, name: str, parent: Module | None) -> Module | None:  # noqa: ARG002
        raise NotRead


class _Archive:
    def __init__(self, data: bytes, environment: _Environment) -> None:
        self.identity: str | None = hashlib.sha256(data).hexdigest()
        self._environment, self.stamps = environment, environment.stamps
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
        if any(file.startswith(f"{path}/") for file in self._files) and not _is_regular(
            dotted, self._environment
        ):
            return Module(name=dotted, source_=self, is_package=True, source=b"")
        return None

    def _module(self, name: str, file: str, *, is_package: bool) -> Module:
        return Module(name=name, source_=self, is_package=is_package, source=self._zip.read(file))


def _is_regular(dotted: str, environment: _Environment) -> bool:
    """Returns whether the environment has a regular package or module of this name.

    Python prefers it to a directory without __init__.py, wherever it is on the path.
    """
    module = None if "." in dotted else environment.find(dotted, None)
    return module is not None and module.source != b""


class _Environment:
    def __init__(self) -> None:
        self.identity: str | None = ""
        self.stamps = Stamps()

    def find(self, name: str, parent: Module | None) -> Module | None:
        for path in sys.path if parent is None else parent.directories:
            self.stamps.of(path)
        if parent is None:
            spec = _top_level(name)
            return self._module(name, spec) if spec else None
        # Only the last part of the name: for a full name the finder would need the parent imported.
        spec = PathFinder.find_spec(name, list(parent.directories))
        return self._module(f"{parent.name}.{name}", spec) if spec else None

    def _module(self, name: str, spec: ModuleSpec) -> Module:
        directories = spec.submodule_search_locations
        if spec.origin:
            self.stamps.of(spec.origin)
        return Module(
            name=name,
            source_=self,
            is_package=directories is not None,
            source=_source(spec),
            directories=tuple(directories or ()),
        )


class _Folder(_Environment):
    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.identity = None
        self._path = [str(folder)]

    def find(self, name: str, parent: Module | None) -> Module | None:
        if parent is not None:
            return super().find(name, parent)
        spec = PathFinder.find_spec(name, self._path)
        if spec is None or (spec.origin is None and _is_regular(name, _Environment())):
            return None
        return self._module(name, spec)


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
