"""How long a job took, from its first start to its end, as an expression that an index can hold."""

from __future__ import annotations

from typing import Any

from sqlalchemy import BindParameter, ColumnElement, Float
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement


class took(FunctionElement[Any]):  # noqa: N801 - as SQLAlchemy names functions
    """`took(finished_at, started_at)`. Of use for comparison alone: in days or an interval."""

    type = Float()
    inherit_cache = True


@compiles(took, "sqlite")
def _in_days(element: took, compiler: SQLCompiler, **options: Any) -> str:
    finished, started = (f"julianday({compiler.process(time, **options)})" for time in element.clauses)
    return f"({finished} - {started})"


@compiles(took, "postgresql")
def _as_interval(element: took, compiler: SQLCompiler, **options: Any) -> str:
    finished, started = (_time(time, compiler, options) for time in element.clauses)
    return f"({finished} - {started})"


def _time(time: ColumnElement[Any], compiler: SQLCompiler, options: dict[str, Any]) -> str:
    text = compiler.process(time, **options)
    # A literal has no type. The columns stay as they are written in the index.
    return f"CAST({text} AS TIMESTAMPTZ)" if isinstance(time, BindParameter) else text
