"""Rows for several tables in one statement of PostgreSQL, which is a transaction of its own.

So a group of new jobs costs one exchange with the server, and its rows are sent as JSON, which takes a fraction
of the time in which a driver converts them value by value.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any

from sqlalchemy import Connection, Table
from sqlalchemy.dialects import postgresql

Row = Mapping[str, Any]


def insert_together(connection: Connection, tables: Sequence[tuple[Table, Sequence[Row]]]) -> None:
    """Inserts the rows of each table: all of them, or none.

    connection: one to PostgreSQL that commits each statement (`database.committing`). tables: with the rows of
    each, which have the same columns, and values as JSON has them, or dates; a table may have none.
    """
    names = tuple((table, tuple(rows[0]) if rows else ()) for table, rows in tables)
    given = tuple(json.dumps(rows, ensure_ascii=False, default=_as_text) for _, rows in tables if rows)
    connection.exec_driver_sql(_statement(names), given)


def _as_text(value: object) -> str:
    assert isinstance(value, datetime), f"JSON has no {type(value).__name__}"
    return value.isoformat()


@lru_cache(maxsize=64)
def _statement(tables: tuple[tuple[Table, tuple[str, ...]], ...]) -> str:
    inserts = [_insert(table, columns) for table, columns in tables if columns]
    before = ", ".join(f"part_{number} AS ({insert})" for number, insert in enumerate(inserts[:-1]))
    return f"WITH {before} {inserts[-1]}" if before else inserts[-1]


def _insert(table: Table, columns: Sequence[str]) -> str:
    names = ", ".join(f'"{name}"' for name in columns)
    dialect = postgresql.dialect()
    types = ", ".join(f'"{name}" {table.c[name].type.compile(dialect)}' for name in columns)
    return f"INSERT INTO {table.name} ({names}) SELECT {names} FROM json_to_recordset(%s) AS given({types})"
