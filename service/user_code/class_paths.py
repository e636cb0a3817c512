"""Checks that a class path resolves and takes its init_args, without importing anything.

If the source cannot tell (compiled modules, a module's `__getattr__`, names created at run time), both are
accepted.
"""

from __future__ import annotations

import ast
import difflib
from collections.abc import Iterator, Mapping, Sequence
from inspect import Signature
from typing import TypeGuard

from service.user_code.modules import (
    Module,
    ModuleSource,
    find_module,
    imported_module,
    sources_of,
    syntax_tree,
)
from service.user_code.signatures import signature_of
from training.spec import ClassSpec, Problem, Spec
from training.spec.arguments import arguments_problem

_STAR_DEPTH = 5
_MAKES_NAMES = {"globals", "locals", "vars", "exec"}


def class_path_problems(spec: Spec, archive: bytes | None) -> list[Problem]:
    """Returns a problem for each class path of the spec that does not resolve or not take its init_args.

    archive: the uploaded code; None if there is none.
    """
    sources = sources_of(archive)
    return [problem for each in _class_specs(spec) for problem in _problems(*each, sources)]


def _problems(key: str, part: ClassSpec, added: int, sources: Sequence[ModuleSource]) -> Iterator[Problem]:
    """Yields the problems of one class. added: the number of arguments that the training puts first."""
    if message := _check(part.class_path, sources):
        yield Problem(key=f"{key}.class_path", message=message)
    else:
        signature = _signature(part.class_path, sources)
        if signature and (message := arguments_problem(signature, [None] * added, part.init_args)):
            yield Problem(key=f"{key}.init_args", message=message)
    for name, value in part.init_args.items():
        if _is_class_spec(value):
            inner = ClassSpec.model_validate(value)
            yield from _problems(f"{key}.init_args.{name}", inner, 0, sources)


def _is_class_spec(value: object) -> bool:
    return (
        isinstance(value, Mapping) and "class_path" in value and value.keys() <= {"class_path", "init_args"}
    )


def _signature(class_path: str, sources: Sequence[ModuleSource]) -> Signature | None:
    top, *between, name = class_path.split(".")
    module = find_module(top, sources)
    for part in between:
        module = module and module.submodule(part)
    return signature_of(module, name, sources) if module else None


def check_class_path(class_path: str, archive: bytes | None = None) -> str | None:
    """Returns what is wrong with the path; None if it resolves, or if only importing could tell."""
    return _check(class_path, sources_of(archive))


def _class_specs(spec: Spec) -> Iterator[tuple[str, ClassSpec, int]]:
    """Yields each class of the spec by its key, with the number of arguments that the training puts first."""
    yield "model", spec.model, 0
    yield "data", spec.data, 0
    yield "loss", spec.loss, 0
    yield from ((f"metrics.{name}", metric, 0) for name, metric in spec.metrics.items())
    if spec.optimizer:
        yield "optimizer", spec.optimizer, 1
    if spec.lr_scheduler:
        yield "lr_scheduler", spec.lr_scheduler, 1


def _check(class_path: str, sources: Sequence[ModuleSource]) -> str | None:
    top, *rest = class_path.split(".")
    if module := find_module(top, sources):
        return _follow(module, rest, sources)
    looked = "the uploaded code or the environment" if len(sources) > 1 else "the environment"
    return f"no module named {top!r} in {looked}"


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


# What a module's source defines


def _names(module: Module, sources: Sequence[ModuleSource], depth: int) -> set[str] | None:
    """Returns the module's top-level names; None if only running the module could tell."""
    tree = syntax_tree(module) if depth else None
    try:
        return _names_in(tree, module, sources, depth) if tree is not None else None
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
    source = imported_module(node, module, sources)
    return _names(source, sources, depth - 1) if source else None
