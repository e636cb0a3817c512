"""Finds imports of the user's code that nothing installed provides, without importing anything.

From the script, or the modules of the class paths, it follows imports through the user's code. An import that
runs when these modules are imported certainly fails, so it is a problem. One in a function, or under a
condition, may never run, so it is a note. One whose failure the code handles (`try: … except ImportError`) is
neither, nor is one that is only for type checkers.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from service.user_code.class_paths import class_paths
from service.user_code.modules import Module, ModuleSource, find_module, sources_of, syntax_tree
from service.user_code.requirements import KEY, required_names
from training.spec import Problem, Spec

_HANDLED = {"ImportError", "ModuleNotFoundError", "Exception", "BaseException"}
_NEVER = {"TYPE_CHECKING", "__name__"}


@dataclass(frozen=True, kw_only=True)
class Import:
    """An import statement of the user's code.

    importer: the module with the statement. names: the dotted names of the modules that it may import.
    is_certain: whether it runs whenever the module is imported.
    """

    importer: Module
    names: tuple[str, ...]
    line: int
    is_certain: bool

    @property
    def top(self) -> str:
        return self.names[0].partition(".")[0]


def missing_imports(spec: Spec, code: bytes | Path) -> tuple[list[Problem], list[str]]:
    """Returns a problem for each missing module whose import certainly fails, and notes on the others.

    code: the archive of the uploaded code, or a folder in its place.
    """
    sources = sources_of(code)
    paths = class_paths(spec, code)
    if spec.script is not None and "/" not in spec.script.path:  # another finds modules beside itself, too
        paths = [spec.script.path.removesuffix(".py")]
    roots = [module for path in paths for module in _modules_of(path, sources)]
    imports = _reached(roots, sources, certain_alone=True)
    certain = _first_by_top(each for each in imports if each.is_certain and _is_missing(each, sources))
    others = _first_by_top(
        each for each in _reached(roots, sources, certain_alone=False) if _is_missing(each, sources)
    )

    def what(found: Import) -> str:
        return (
            f"{_where(found)} imports {found.top}, which is neither in the code nor installed where jobs run"
        )

    left = [(top, each) for top, each in others.items() if top not in certain]
    if spec.environment.requirements:
        # Which modules these bring is known only once they are installed.
        seen = [*certain.values(), *(each for _, each in left)]
        names = required_names(spec, code)
        unsure = [each for each in seen if each.top.lower() not in names]
        return [], [f"{what(each)}; one of environment.requirements has to bring it" for each in unsure]
    problems = [Problem(key=KEY, message=f"{what(each)}; {_WAYS_OUT}") for each in certain.values()]
    notes = [f"{what(each)}; this fails if that line runs; {_WAYS_OUT}" for _, each in left]
    return problems, notes


_WAYS_OUT = "add its package to environment.requirements, or give the folder that has it as --code"


def _where(found: Import) -> str:
    return f"module {found.importer.name} (line {found.line})"


def _first_by_top(imports: Iterable[Import]) -> dict[str, Import]:
    first: dict[str, Import] = {}
    for each in imports:
        first.setdefault(each.top, each)
    return first


def _is_missing(found: Import, sources: Sequence[ModuleSource]) -> bool:
    top = found.top
    return top not in sys.stdlib_module_names and find_module(top, sources) is None


def _reached(
    roots: Sequence[Module], sources: Sequence[ModuleSource], *, certain_alone: bool
) -> Iterator[Import]:
    """Yields the imports of the user's modules that importing `roots` imports, or may import."""
    pending, seen = list(roots), set[str]()
    while pending:
        module = pending.pop(0)
        if module.name in seen or module.source_ is not sources[0]:
            continue
        seen.add(module.name)
        for each in imports_of(module):
            yield each
            if each.is_certain or not certain_alone:
                pending += [found for name in each.names for found in _modules_of(name, sources)]


def _modules_of(path: str, sources: Sequence[ModuleSource]) -> list[Module]:
    """Returns the modules along a dotted path: importing a.b.c imports a, a.b and a.b.c."""
    top, *rest = path.split(".")
    module = find_module(top, sources)
    found: list[Module] = []
    while module is not None:
        found.append(module)
        module = module.submodule(rest.pop(0)) if rest else None
    return found


def imports_of(module: Module) -> list[Import]:
    """Returns the import statements of a module, without those that may fail or never run in a job."""
    try:
        tree = syntax_tree(module)
        return list(_imports(tree.body, module, is_certain=True)) if tree is not None else []
    except (SyntaxError, RecursionError):  # the check of class paths tells what does not parse
        return []


def _imports(body: Iterable[ast.AST], module: Module, *, is_certain: bool) -> Iterator[Import]:
    for node in body:
        match node:
            case ast.Import(names=aliases, lineno=line):
                for alias in aliases:
                    yield Import(importer=module, names=(alias.name,), line=line, is_certain=is_certain)
            case ast.ImportFrom(lineno=line):
                if names := _names_of(node, module):
                    yield Import(importer=module, names=names, line=line, is_certain=is_certain)
            case ast.Try(handlers=handlers) | ast.TryStar(handlers=handlers):
                if not any(map(_handles, handlers)):
                    yield from _imports(node.body, module, is_certain=is_certain)
                yield from _imports(node.finalbody, module, is_certain=is_certain)
            case ast.With(items=items, body=inner):
                if not any("suppress" in ast.unparse(item.context_expr) for item in items):
                    yield from _imports(inner, module, is_certain=is_certain)
            case ast.If(test=test, body=inner, orelse=otherwise):
                never = any(isinstance(each, ast.Name) and each.id in _NEVER for each in ast.walk(test)) or (
                    isinstance(test, ast.Attribute) and test.attr in _NEVER
                )
                if not never:
                    yield from _imports(inner, module, is_certain=False)
                yield from _imports(otherwise, module, is_certain=is_certain and never)
            case ast.ClassDef(body=inner):
                yield from _imports(inner, module, is_certain=is_certain)
            case _:
                yield from _imports(ast.iter_child_nodes(node), module, is_certain=False)


def _handles(handler: ast.ExceptHandler) -> bool:
    if handler.type is None:
        return True
    return any(isinstance(each, ast.Name) and each.id in _HANDLED for each in ast.walk(handler.type))


def _names_of(node: ast.ImportFrom, module: Module) -> tuple[str, ...]:
    """Returns the modules that a `from x import y` may import: x and, in case it is a module, x.y."""
    base = module.name.split(".") if node.level else []
    up = node.level - module.is_package if node.level else 0
    parts = [*base[: len(base) - up], *(node.module.split(".") if node.module else [])]
    if not parts:
        return ()
    name = ".".join(parts)
    return (name, *(f"{name}.{alias.name}" for alias in node.names if alias.name != "*"))
