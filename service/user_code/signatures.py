"""The signature of a class or function, read from its source without importing it."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from inspect import Parameter, Signature
from typing import Any

from service.user_code.modules import Module, ModuleSource, imported_module, syntax_tree

_REEXPORTS = 5
_ONLY, _EITHER = Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD


def signature_of(module: Module, name: str, sources: Sequence[ModuleSource]) -> Signature | None:
    """Returns the signature of a call of `name` in `module`; None if only importing could tell.

    That is so for decorated and inherited constructors, metaclasses, and names that are not plainly defined.
    Raises SyntaxError.
    """
    found = definition(module, name, sources)
    if found is None:
        return None
    node, _ = found
    return _of_class(node) if isinstance(node, ast.ClassDef) else _of_function(node, skip=0)


def definition(
    module: Module, name: str, sources: Sequence[ModuleSource], depth: int = _REEXPORTS
) -> tuple[ast.ClassDef | ast.FunctionDef, Module] | None:
    """Returns the definition of `name` in `module`, and the module where it stands; None if it is not plain.

    depth: the maximum number of modules on the way there that import the name from another. Raises
    SyntaxError.
    """
    tree = syntax_tree(module)
    if tree is None or not depth:
        return None
    found = [node for node in ast.walk(tree) if name in _names_of(node)]
    match found:
        case [ast.ClassDef() | ast.FunctionDef() as node] if node in tree.body:
            return node, module
        case [ast.ImportFrom() as node] if node in tree.body:
            source = imported_module(node, module, sources)
            original = next(alias.name for alias in node.names if name == (alias.asname or alias.name))
            return definition(source, original, sources, depth - 1) if source else None
    return None


def _names_of(node: ast.AST) -> set[str]:
    match node:
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            return {name}
        case ast.Import(names=aliases) | ast.ImportFrom(names=aliases):
            return {alias.asname or alias.name for alias in aliases}
        case ast.Name(id=name, ctx=ast.Store() | ast.Del()):
            return {name}
    return set()


def _of_class(node: ast.ClassDef) -> Signature | None:
    if node.decorator_list or node.keywords:
        return None
    methods = {each.name: each for each in node.body if isinstance(each, ast.FunctionDef)}
    if "__new__" in methods or "__init__" not in methods:
        return None
    return _of_function(methods["__init__"], skip=1)


def _of_function(node: ast.FunctionDef, *, skip: int) -> Signature | None:
    """Returns the signature without its first `skip` parameters."""
    if node.decorator_list:
        return None
    given = node.args
    names = [*given.posonlyargs, *given.args]
    defaults = [None] * (len(names) - len(given.defaults)) + list(given.defaults)
    parameters = [
        _parameter(each.arg, default, _ONLY if each in given.posonlyargs else _EITHER)
        for each, default in zip(names, defaults, strict=True)
    ][skip:]
    if given.vararg:
        parameters.append(Parameter(given.vararg.arg, Parameter.VAR_POSITIONAL))
    parameters += [
        _parameter(each.arg, default, Parameter.KEYWORD_ONLY)
        for each, default in zip(given.kwonlyargs, given.kw_defaults, strict=True)
    ]
    if given.kwarg:
        parameters.append(Parameter(given.kwarg.arg, Parameter.VAR_KEYWORD))
    return Signature(parameters)


def _parameter(name: str, default: ast.AST | None, kind: Any) -> Parameter:
    return Parameter(name, kind, default=Parameter.empty if default is None else _Shown(default))


class _Shown:
    """A default value, which is shown as it is written."""

    def __init__(self, node: ast.AST) -> None:
        self.text = ast.unparse(node)

    def __repr__(self) -> str:
        return self.text
