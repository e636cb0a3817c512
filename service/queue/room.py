"""Whether the disk of a PostgreSQL server has room: it shows only to who writes more than is there already.

A table that has free space, or a log file that is not full, takes small writes on a full disk, too. So a
megabyte is written into a temporary table, which is rolled back. For SQLite the check of disks is enough.
"""

from __future__ import annotations

import math
from time import monotonic
from weakref import WeakKeyDictionary

from sqlalchemy import Connection, Engine, exc, text

SECONDS_BETWEEN = 60.0
"""Checks that are asked for sooner after one that found room do nothing: each costs some milliseconds."""

# On the disk of the tables, not on one that the operator has for temporary files.
_DISK = text("SET LOCAL temp_tablespaces = ''")
_WRITE = text(
    "CREATE TEMPORARY TABLE syncbn_room AS SELECT n, md5(n::text) FROM generate_series(1, 16384) AS n"
)
_found_at: WeakKeyDictionary[Engine, float] = WeakKeyDictionary()


def check_room(connection: Connection) -> None:
    """Raises DBAPIError if the server cannot store another megabyte. Changes nothing."""
    engine = connection.engine
    if (
        engine.dialect.name != "postgresql"
        or monotonic() - _found_at.get(engine, -math.inf) < SECONDS_BETWEEN
    ):
        return
    try:
        with connection.begin_nested() as savepoint:
            connection.execute(_DISK)
            connection.execute(_WRITE)
            savepoint.rollback()
    except exc.ProgrammingError:
        pass  # a role that may not create temporary tables cannot find out
    _found_at[engine] = monotonic()
