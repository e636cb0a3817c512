"""Rows for several tables, inserted together: PostgreSQL gets them in one statement, as JSON.

One exchange with the server takes the place of one for each table. And a driver would convert the rows value
by value, which takes several times as long.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any

from sqlalchemy import Connection, Dialect, Table, insert
from sqlalchemy.dialects import postgresql

from service.queue.tables import AsJson

Row = Mapping[str, Any]
_DIALECT: Dialect = postgresql.dialect()  # type: ignore[no-untyped-call]


def insert_together(connection: Connection, tables: Sequence[tuple[Table, Sequence[Row]]]) -> None:
    """Inserts the rows of each table, of which a later one may refer to those of an earlier one.

    tables: each with its rows, which have the same columns. A table may have no rows.
    """
    given = [(table, rows) for table, rows in tables if rows]
    if connection.dialect.name == "postgresql":
        statement = _statement(tuple((table, tuple(rows[0])) for table, rows in given))
        connection.exec_driver_sql(statement, tuple(_text(table, rows) for table, rows in given))
        return
    for table, rows in given:
        connection.execute(insert(table), rows)


def _text(table: Table, rows: Sequence[Row]) -> str:
    written = [(name, kind) for name in rows[0] if isinstance(kind := table.c[name].type, AsJson)]
    for name, kind in written:
        rows = [{**row, name: kind.process_bind_param(row[name], _DIALECT)} for row in rows]
    return json.dumps(rows, ensure_ascii=False, default=_date)


def _date(value: object) -> str:
    assert isinstance(value, datetime), f"JSON has no {type(value).__name__}"
    return value.isoformat()


@lru_cache(maxsize=64)
def _statement(given: tuple[tuple[Table, tuple[str, ...]], ...]) -> str:
    """Returns the statement for these tables and columns. PostgreSQL checks foreign keys at its end."""
    *others, last = (_insert(table, columns) for table, columns in given)
    named = ", ".join(f"part_{number} AS ({each})" for number, each in enumerate(others))
    return f"WITH {named} {last}" if named else last


def _insert(table: Table, columns: Sequence[str]) -> str:
    names = ", ".join(f'"{name}"' for name in columns)
    types = ", ".join(f'"{name}" {table.c[name].type.compile(_DIALECT)}' for name in columns)
    return f"INSERT INTO {table.name} ({names}) SELECT {names} FROM json_to_recordset(%s) AS given({types})"
