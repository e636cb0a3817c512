"""Jobs' rows as tuples of the columns that may change, to be compared with an earlier look."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Engine, select, type_coerce
from sqlalchemy.types import NullType

from service.jobs.job import State
from service.queue import database
from service.queue.queue_pages import IN_ORDER
from service.queue.rows import NOT_DELETED
from service.queue.tables import jobs
from training.protocol import Progress

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
_LOOKS = select(
    jobs.c.id,
    type_coerce(jobs.c.progress, NullType()),
    *(
        type_coerce(column, NullType())
        for column in jobs.columns
        if column.name not in {"id", "progress", *_CONSTANT}
    ),
).where(NOT_DELETED)
_PROGRESS = select(jobs.c.id, jobs.c.progress)


@dataclass(frozen=True, kw_only=True)
class JobLook:
    """What a job's row says at a moment, but for what never changes. rest: all of that but the progress."""

    progress: object
    rest: tuple[object, ...]


class QueueRows:
    """The rows of jobs. Every method raises `Unavailable` as `Store`'s methods do."""

    _engine: Engine

    def queue_rows(self) -> list[tuple[Any, ...]]:
        """Returns the queued jobs' rows, in scheduling order. Their columns: `COLUMNS`."""
        with database.reading(self._engine) as connection:
            return [tuple(row) for row in connection.execute(_ROWS)]

    def looks_at(self, job_ids: Collection[str]) -> dict[str, JobLook]:
        """Returns what those of the jobs that exist look like. Takes a tenth of the time of `several`."""
        if not job_ids:
            return {}
        with database.reading(self._engine) as connection:
            rows = connection.execute(_LOOKS.where(jobs.c.id.in_(job_ids)))
            return {row[0]: JobLook(progress=row[1], rest=tuple(row[2:])) for row in rows}

    def progress_of(self, job_ids: Collection[str]) -> dict[str, Progress | None]:
        """Returns the progress of those of the jobs that exist."""
        if not job_ids:
            return {}
        with database.reading(self._engine) as connection:
            rows = connection.execute(_PROGRESS.where(jobs.c.id.in_(job_ids)))
            return {row.id: row.progress for row in rows}
