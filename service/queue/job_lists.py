"""Lists of jobs for people: in several orders, in pages forwards and backwards, and how many there are."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Unpack

from sqlalchemy import ColumnElement, Engine, Select, and_, func, literal, or_, select

from service.jobs.job import Job
from service.queue import cursors, database, filters
from service.queue.filters import Filters
from service.queue.rows import job_of
from service.queue.tables import UtcDateTime, jobs
from service.queue.took import took


class Order(enum.StrEnum):
    """The orders of a list. Each is that of an index, so that a page of any number of jobs is read at once.

    There is none by a metric: it changes while a job runs, and is no column.
    """

    NEWEST = "newest"
    OLDEST = "oldest"
    NAME = "name"
    ENDED = "ended"
    """Those that have ended, the last first."""
    LONGEST = "longest"
    """Those that have started and ended, the one that took longest first."""


@dataclass(frozen=True, kw_only=True)
class JobsPage:
    """One page of a list. before, after: the cursors of the pages beside it; None: there is none."""

    items: list[Job]
    before: str | None
    after: str | None


@dataclass(frozen=True, kw_only=True)
class _Sorting:
    """An order by a column or an expression, and by id where that is equal.

    write: the text of a job's value in cursors. read: what the database compares with `column`.
    """

    column: ColumnElement[Any]
    descending: bool
    write: Callable[[Job], str]
    read: Callable[[str], Any]


def _moment(text: str) -> datetime:
    try:
        return datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError):
        raise cursors.refused() from None


def _written(moment: datetime | None) -> str:
    return moment.isoformat() if moment else ""


def _length(text: str) -> ColumnElement[Any]:
    """Returns a length as the database computes it of the two times: a fraction of Python's may differ."""
    finished, _, started = text.partition(" ")
    return took(*(literal(_moment(each), UtcDateTime) for each in (finished, started)))


_SORTINGS = {
    Order.NAME: _Sorting(column=jobs.c.name, descending=False, write=lambda job: job.name, read=str),
    Order.ENDED: _Sorting(
        column=jobs.c.finished_at,
        descending=True,
        write=lambda job: _written(job.finished_at),
        read=_moment,
    ),
    Order.LONGEST: _Sorting(
        column=took(jobs.c.finished_at, jobs.c.started_at),
        descending=True,
        write=lambda job: f"{_written(job.finished_at)} {_written(job.started_at)}",
        read=_length,
    ),
}


class JobLists:
    """The lists. Every method raises `Unavailable` as `Store`'s methods do."""

    _engine: Engine

    def jobs_page(
        self,
        order: Order = Order.NEWEST,
        *,
        after: str | None = None,
        before: str | None = None,
        limit: int = 50,
        **given: Unpack[Filters],
    ) -> JobsPage:
        """Returns the page that follows the cursor `after`, or precedes `before`; without either, the first.

        Jobs created between two pages neither shift nor repeat the results. Raises Refused for a bad cursor.
        """
        cursor = before if after is None else after
        backwards = after is None and before is not None
        query = page_query(order, given, cursor=cursor, backwards=backwards, limit=limit + 1)
        with database.reading(self._engine) as connection:
            found = [job_of(row) for row in connection.execute(query)]
        more, items = len(found) > limit, found[:limit]
        if backwards:
            items.reverse()
        # Beyond the cursor there is at least the job that it names.
        has_before, has_after = (more, True) if backwards else (cursor is not None, more)
        return JobsPage(
            items=items,
            before=_cursor(order, items[0]) if items and has_before else None,
            after=_cursor(order, items[-1]) if items and has_after else None,
        )

    def count_jobs(self, *, limit: int, newer_than: str | None = None, **given: Unpack[Filters]) -> int:
        """Returns how many jobs match every filter, or `limit` if there are at least as many.

        newer_than: the id of a job; count only those that were created after it.
        """
        ids = filters.page(given, after=newer_than, limit=limit).with_only_columns(jobs.c.id).subquery()
        with database.reading(self._engine) as connection:
            return connection.execute(select(func.count()).select_from(ids)).scalar_one()


def page_query(
    order: Order, given: Filters, *, cursor: str | None, backwards: bool, limit: int
) -> Select[Any]:
    """Returns the query of the jobs beyond a cursor; backwards, of those before it, the nearest first."""
    if order in _SORTINGS:
        return _sorted(_SORTINGS[order], given, cursor, backwards=backwards, limit=limit)
    oldest_first = (order is Order.OLDEST) is not backwards
    last_id = None if cursor is None else cursors.decode(cursor)
    bounds = {"after" if oldest_first else "before": last_id}
    return filters.page(given, **bounds, oldest_first=oldest_first, limit=limit)


def _sorted(
    sorting: _Sorting, given: Filters, cursor: str | None, *, backwards: bool, limit: int
) -> Select[Any]:
    descending = sorting.descending is not backwards
    order = [each.desc() if descending else each.asc() for each in (sorting.column, jobs.c.id)]
    # The ids first: many rows may have to be skipped, and a row is long.
    ids = select(jobs.c.id).where(sorting.column.is_not(None), *filters.conditions(given))
    if cursor is not None:
        ids = ids.where(_beyond(sorting, cursor, descending=descending))
    ids = ids.order_by(*order).limit(limit)
    return select(jobs).where(jobs.c.id.in_(ids)).order_by(*order)


def _beyond(sorting: _Sorting, cursor: str, *, descending: bool) -> ColumnElement[bool]:
    text, last_id = cursors.decode_sorted(cursor)
    column, value = sorting.column, sorting.read(text)
    if descending:
        return and_(column <= value, or_(column < value, jobs.c.id < last_id))
    return and_(column >= value, or_(column > value, jobs.c.id > last_id))


def _cursor(order: Order, job: Job) -> str:
    if order in _SORTINGS:
        return cursors.encode_sorted(_SORTINGS[order].write(job), job.id)
    return cursors.encode(job.id)
