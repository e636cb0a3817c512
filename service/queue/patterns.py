"""Patterns of names: * stands for any text, ? for one character, and \\ before one of these for itself."""

from __future__ import annotations

import re
import sys
from itertools import takewhile
from typing import Any

from sqlalchemy import Column, ColumnElement, literal
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

_PARTS = re.compile(r"\\([*?\\])|([*?])|([^*?\\]+|\\)")
_GLOB = str.maketrans({"*": "[*]", "?": "[?]", "[": "[[]"})
_LIKE = str.maketrans({"%": r"\%", "_": r"\_", "\\": r"\\"})


def is_pattern(text: str) -> bool:
    """Returns whether the text is a pattern; another one stands for itself, backslashes included."""
    return "*" in text or "?" in text


def matches(column: Column[str], pattern: str) -> ColumnElement[bool]:
    """Returns the condition that the column matches the pattern, with regard to case.

    SQLite looks up the text before the first * or ? in an index; PostgreSQL cannot in one that is in the
    order of its locale.
    """
    parts = [(wild, escaped or text) for escaped, wild, text in _PARTS.findall(pattern)]
    glob = "".join(wild or text.translate(_GLOB) for wild, text in parts)
    like = "".join({"*": "%", "?": "_"}[wild] if wild else text.translate(_LIKE) for wild, text in parts)
    begin = "".join(text for _, text in takewhile(lambda part: not part[0], parts))
    return _Matches(column, literal(glob), literal(like), literal(begin))


class _Matches(FunctionElement[bool]):
    """A column, the pattern for GLOB, that for LIKE, and the text with which both begin."""

    inherit_cache = True


@compiles(_Matches, "sqlite")
def _on_sqlite(element: Any, compiler: Any, **options: Any) -> str:
    column, glob, _, begin = (compiler.process(each, **options) for each in element.clauses)
    last = chr(sys.maxunicode)
    return f"({column} >= {begin} AND {column} < {begin} || '{last}' AND {column} GLOB {glob})"


@compiles(_Matches)
def _elsewhere(element: Any, compiler: Any, **options: Any) -> str:
    column, _, like, _ = element.clauses

    return f"({compiler.process(column, **options)} LIKE {compiler.process(like, **options)} ESCAPE '\\')"
