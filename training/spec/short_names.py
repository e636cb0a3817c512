"""Which module of the uploaded code defines a class that a spec names without its module."""

from __future__ import annotations

import ast
import os
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

_MOST_FILES = 2_000


def python_files(folder: Path) -> Iterator[tuple[str, str]]:
    """Yields the path and the source of the Python files in a folder, of the first 2,000.

    Paths are relative to it. Hidden folders, such as virtual environments, are left out.
    """
    for path in islice(_walk(folder), _MOST_FILES):
        yield path.relative_to(folder).as_posix(), path.read_text(encoding="utf-8", errors="replace")


def _walk(folder: Path) -> Iterator[Path]:
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(parent, name) for name in sorted(files) if name.endswith(".py"))


def modules_defining(name: str, files: Iterable[tuple[str, str]]) -> list[str]:
    """Returns the dotted names of the modules that define a class or function `name` at their top level.

    files: the path of each module, relative to the folder of the code, and its source. Files that are no
    modules, or do not parse, define nothing.
    """
    return sorted(_module_of(path) for path, source in files if _is_module(path) and _defines(source, name))


def _module_of(path: str) -> str:
    parts = path.removesuffix(".py").split("/")
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def _is_module(path: str) -> bool:
    return path.endswith(".py") and all(part.isidentifier() for part in path.removesuffix(".py").split("/"))


def _defines(source: str, name: str) -> bool:
    if name not in source:
        return False
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):
        return False
    return any(isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name for node in tree.body)
