"""The queued jobs' rows as tuples of the columns that may change, to be compared with an earlier look."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Engine, select, type_coerce
from sqlalchemy.types import NullType

from service.jobs.job import State
from service.queue import database
from service.queue.queue_pages import IN_ORDER
from service.queue.tables import jobs

_CONSTANT = {
    *("name", "spec", "idempotency_key", "created_at", "sweep_id", "point", "experiment", "user", "code"),
}
"""Columns that are written with the row and never again. `spec` takes most of the time of a query."""
_NOT_COMPARED = {"id", "expected", *_CONSTANT}
"""Besides: no decision of the scheduler depends on its own estimates."""

COLUMNS = ("id", *(column.name for column in jobs.columns if column.name not in _NOT_COMPARED))
# Values as the driver returns them: they are only compared.
_ROWS = (
    select(*(type_coerce(jobs.c[name], NullType()).label(name) for name in COLUMNS))
    .where(jobs.c.state == State.QUEUED)
    .order_by(*IN_ORDER)
)


class QueueRows:
    """The rows of queued jobs. Every method raises `Unavailable` as `Store`'s methods do."""

    _engine: Engine

    def queue_rows(self) -> list[tuple[Any, ...]]:
        """Returns the queued jobs' rows, in scheduling order. Their columns: `COLUMNS`."""
        with database.reading(self._engine) as connection:
            return [tuple(row) for row in connection.execute(_ROWS)]
