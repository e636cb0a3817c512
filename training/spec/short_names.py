"""Which module of the uploaded code defines a class that a spec names without its module."""

from __future__ import annotations

import ast
from collections.abc import Iterable


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
