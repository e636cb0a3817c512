"""Checks that a class path resolves and takes its init_args, without importing anything.

If the source cannot tell (compiled modules, a module's `__getattr__`, names created at run time), both are
accepted.
"""

from __future__ import annotations

import ast
import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from inspect import Signature
from itertools import islice
from pathlib import Path
from types import NoneType
from typing import Any, NamedTuple, TypeGuard

from service.user_code.known_classes import KnownClasses
from service.user_code.modules import (
    Module,
    ModuleSource,
    find_module,
    imported_module,
    python_files,
    sources_of,
    syntax_tree,
)
from service.user_code.signatures import signature_of
from training.protocol import RESERVED_PACKAGES
from training.reserved import hiding
from training.spec import ClassSpec, Problem, Spec
from training.spec.arguments import arguments_problem
from training.spec.short_names import modules_defining
from training.spec.trainer import NAMESPACES, packages_of_logger

MAX_CLASSES = 200
"""Maximum number of classes that a spec may name: the check of each reads source code."""

_STAR_DEPTH = 5
_SCALARS = (str, int, float, NoneType)
_MAKES_NAMES = {"globals", "locals", "vars", "exec"}


class _Named(NamedTuple):
    """A class of a spec at its key.

    added: the number of arguments that the training puts first. namespace: the module whose classes may be
    named without it; None: only classes of the uploaded code may be. guesses: whether a name without a module
    may be one that only the worker knows.
    """

    key: str
    class_path: str
    init_args: Mapping[str, Any]
    added: int = 0
    namespace: str | None = None
    guesses: bool = False


@dataclass(frozen=True, kw_only=True)
class _Known:
    """What is known of a class path: what is wrong with it, or else the signature of its class."""

    problem: str | None
    signature: Signature | None


_KNOWN = KnownClasses[_Known](most=1_000)


def class_path_problems(spec: Spec, archive: bytes | None) -> list[Problem]:
    """Returns a problem for each class path of the spec that does not resolve or not take its init_args.

    archive: the uploaded code; None if there is none.
    """
    sources = sources_of(archive)
    found = [problem for each in _classes(spec) for problem in _problems(each, sources, archive)]
    if not spec.environment.requirements:
        return found
    # What is not the service's own may be brought, or replaced, by the requirements.
    known = {each.key: each.class_path for each in _all_classes(spec)}
    return [problem for problem in found if _is_sure(known.get(problem.key.rpartition(".")[0]), archive)]


def class_count_problems(spec: Spec) -> list[Problem]:
    """Returns a problem if the spec names more than MAX_CLASSES classes."""
    extra = next(islice(_all_classes(spec), MAX_CLASSES, None), None)
    message = f"is one class too many; a spec may name {MAX_CLASSES} classes, those in arguments included"
    return [Problem(key=extra.key, message=message)] if extra else []


def _is_sure(class_path: str | None, archive: bytes | None) -> bool:
    """Returns whether no requirement can change what is known of a class."""
    if class_path is None or "." not in class_path:
        return True
    top = class_path.partition(".")[0]
    own = archive is not None and find_module(top, sources_of(archive)[:1]) is not None
    return own or top in RESERVED_PACKAGES or bool(hiding([top]))


def class_paths(spec: Spec, code: bytes | Path) -> list[str]:
    """Returns all class paths of the spec, those in arguments too, with their modules where these are known.

    code: the archive of the uploaded code, or a folder in its place.
    """
    sources = sources_of(code)
    paths = (
        part.class_path if "." in part.class_path else _whole_path(part, sources, code)[0]
        for part in _all_classes(spec)
    )
    return [path for path in paths if path]


def _all_classes(spec: Spec) -> Iterator[_Named]:
    """Yields each class of the spec, those in arguments too."""
    pending = list(_classes(spec))
    while pending:
        part = pending.pop(0)
        yield part
        for name, value in part.init_args.items():
            if not isinstance(value, _SCALARS):
                pending += _nested(f"{part.key}.init_args.{name}", value)


def _problems(part: _Named, sources: Sequence[ModuleSource], archive: bytes | None) -> Iterator[Problem]:
    path, message = part.class_path, None
    if "." not in path:
        path, message = _whole_path(part, sources, archive)
    known = _known(path, sources) if path and not message else _Known(problem=message, signature=None)
    if message := known.problem:
        if "." in part.class_path and find_module(path.partition(".")[0], sources) is None:
            message += "; if a package has it, add that to environment.requirements"
        yield Problem(key=f"{part.key}.class_path", message=message)
    elif known.signature and (
        wrong := arguments_problem(known.signature, [None] * part.added, part.init_args)
    ):
        yield Problem(key=f"{part.key}.init_args", message=wrong)
    for name, value in part.init_args.items():
        if isinstance(value, _SCALARS):
            continue
        for inner in _nested(f"{part.key}.init_args.{name}", value):
            yield from _problems(inner, sources, archive)


def _whole_path(
    part: _Named, sources: Sequence[ModuleSource], code: bytes | Path | None
) -> tuple[str, str | None]:
    """Returns the path of a class named without its module, "" if it is not known; and what is wrong."""
    name = part.class_path
    if part.namespace and _known(f"{part.namespace}.{name}", sources).problem is None:
        return f"{part.namespace}.{name}", None
    modules = modules_defining(name, python_files(code)) if code else []
    if len(modules) == 1:
        return f"{modules[0]}.{name}", None
    if part.guesses and not modules:
        return "", None
    places = " or ".join(filter(None, [part.namespace, "the uploaded code"]))
    found = f"{' and '.join(modules)} define" if modules else f"nothing in {places} defines"
    return "", f"{found} {name!r}; write its whole path, as package.module.{name}"


def _nested(key: str, value: object) -> Iterator[_Named]:
    """Yields the outermost classes in an argument, at any depth in lists and mappings."""
    if isinstance(value, list):
        for index, each in enumerate(value):
            yield from _nested(f"{key}.{index}", each)
    elif isinstance(value, Mapping):
        path = value.get("class_path")
        if isinstance(path, str) and value.keys() <= {"class_path", "init_args", "dict_kwargs"}:
            arguments = {**(value.get("init_args") or {}), **(value.get("dict_kwargs") or {})}
            yield _Named(key=key, class_path=path, init_args=arguments, guesses=True)
        else:
            for name, each in value.items():
                yield from _nested(f"{key}.{name}", each)


def _known(class_path: str, sources: Sequence[ModuleSource]) -> _Known:
    def learn() -> _Known:
        problem = _check(class_path, sources)
        return _Known(problem=problem, signature=None if problem else _signature(class_path, sources))

    return _KNOWN.get(class_path, sources, learn)


def _signature(class_path: str, sources: Sequence[ModuleSource]) -> Signature | None:
    top, *between, name = class_path.split(".")
    module = find_module(top, sources)
    for part in between:
        module = module and module.submodule(part)
    return signature_of(module, name, sources) if module else None


def check_class_path(class_path: str, archive: bytes | None = None) -> str | None:
    """Returns what is wrong with the path; None if it resolves, or if only importing could tell."""
    return _known(class_path, sources_of(archive)).problem


def _classes(spec: Spec) -> Iterator[_Named]:
    """Yields each class of the spec, without those in arguments. A script has none."""
    if spec.script is not None:
        return
    parts: list[tuple[str, ClassSpec | None, int]] = [
        ("model", spec.model, 0),
        ("data", spec.data, 0),
        ("loss", spec.loss, 0),
        *((f"metrics.{name}", metric, 0) for name, metric in spec.metrics.items()),
        ("optimizer", spec.optimizer, 1),
        ("lr_scheduler", _of_torch(spec.lr_scheduler), 1),
    ]
    for key, part, added in parts:
        if part:
            yield _Named(key=key, class_path=part.class_path, init_args=part.init_args, added=added)
    for key, component in spec.trainer.components().items():
        if not packages_of_logger(component.class_path):
            yield _Named(
                key=key,
                class_path=component.class_path,
                init_args={**component.init_args, **component.dict_kwargs},
                namespace=f"lightning.pytorch.{NAMESPACES[key.split('.')[1]]}",
            )


def _of_torch(scheduler: ClassSpec | None) -> ClassSpec | None:
    """Returns a scheduler without `monitor`, an argument that Lightning's ReduceLROnPlateau has."""
    if scheduler is None or not scheduler.class_path.endswith(".ReduceLROnPlateau"):
        return scheduler
    others = {name: value for name, value in scheduler.init_args.items() if name != "monitor"}
    return scheduler.model_copy(update={"init_args": others})


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
