"""The queue in pages: the jobs that wait, in scheduling order, with their positions."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Engine, Select, and_, func, or_, select

from service.jobs.expected import ExpectedStart
from service.jobs.job import State
from service.queue import cursors, database
from service.queue.tables import jobs

IN_ORDER = (jobs.c.priority.desc(), jobs.c.id)
"""Scheduling order: by priority, then by age."""

_SHOWN = select(
    jobs.c.id,
    jobs.c.name,
    jobs.c.priority,
    jobs.c.reason,
    jobs.c.created_at,
    jobs.c.backoff_seconds,
    jobs.c.not_before,
    jobs.c.expected,
    jobs.c.spec["resources"].label("resources"),
).where(jobs.c.state == State.QUEUED)
_COUNT = select(func.count()).select_from(jobs).where(jobs.c.state == State.QUEUED)


@dataclass(frozen=True, kw_only=True)
class QueuedJob:
    """What a list of the queue shows of a job. position: from 1. resources: as in its spec."""

    position: int
    id: str
    name: str
    priority: int
    reason: str
    created_at: datetime
    backoff_seconds: float
    not_before: datetime | None
    expected: ExpectedStart | None
    resources: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class QueuedPage:
    """One page of the queue. next_cursor: of the next page; None: this is the last. total: jobs that wait."""

    items: list[QueuedJob]
    next_cursor: str | None
    total: int


def page_query(after: tuple[int, str] | None, limit: int) -> Select[Any]:
    """Returns the query of a page. after: the priority and the id of the last job before it."""
    query = _SHOWN.order_by(*IN_ORDER).limit(limit)
    return query if after is None else query.where(jobs.c.priority <= after[0], _behind(*after))


def _behind(priority: int, last_id: str) -> ColumnElement[bool]:
    """Returns the condition that a job comes after this one in scheduling order."""
    return or_(jobs.c.priority < priority, and_(jobs.c.priority == priority, jobs.c.id > last_id))


class QueuePages:
    """The queue for its readers. Every method raises `Unavailable` as `Store`'s methods do."""

    _engine: Engine

    def queue_page(self, *, cursor: str | None = None, limit: int = 50) -> QueuedPage:
        """Returns a page of the queued jobs, in scheduling order. Reads no more of it than the page.

        Positions are those of this moment: a job that has started since the last page moves the others up.
        Raises Refused for a bad cursor.
        """
        after = None if cursor is None else cursors.decode_queued(cursor)
        with database.reading(self._engine) as connection:
            total = connection.execute(_COUNT).scalar_one()
            before = 0 if after is None else connection.execute(_COUNT.where(~_behind(*after))).scalar_one()
            rows = connection.execute(page_query(after, limit + 1)).all()
        items = [
            QueuedJob(position=position, **row._mapping)
            for position, row in enumerate(rows[:limit], start=before + 1)
        ]
        more = len(rows) > limit
        cursor = cursors.encode_queued(items[-1].priority, items[-1].id) if more else None
        return QueuedPage(items=items, next_cursor=cursor, total=total)
