"""The events of jobs: one for each change of a row of `jobs`, written in the same transaction by triggers.

Triggers, because then no statement that changes a job can forget its event, whichever process makes it.

The order of ids
    of one job   is the order of its changes. A change takes its id while it holds the lock of the job's row,
                 and the next change gets the lock when this one has been committed.
    of all jobs  is not that of the commits on PostgreSQL: a transaction may take an id, and commit after one
                 that has taken a later id. A reader of the later one that goes on from there would miss the
                 earlier one. So readers of all jobs read no further than `EventHorizon` says. SQLite has one
                 writer at a time, so that there the order is the same.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Unpack

from sqlalchemy import Connection, Engine, Row, Select, func, literal, select, text

from service.errors import Unavailable
from service.jobs.job import State
from service.queue import database
from service.queue.filters import Filters, conditions
from service.queue.tables import job_events, jobs

_SECONDS_TO_SETTLE, _SECONDS_BETWEEN = 2.0, 0.02
_RECENT = 5_000


@dataclass(frozen=True, kw_only=True)
class JobEvent:
    """One change of a job, and the job as it was after it.

    id: rises with each change. type: `state` (another state or attempt; a new job too), `restart`,
    `cancel_requested`, `resize` or `priority`. at: by the database's clock.
    """

    id: int
    job_id: str
    type: str
    state: State
    reason: str
    attempt: int
    start: int
    workers: int | None
    wanted_workers: int | None
    priority: int
    at: datetime


class StoredEvents:
    """The stored events. Every method raises `Unavailable` as `Store`'s methods do."""

    _engine: Engine

    def events_of_job(self, job_id: str, *, after: int, limit: int) -> list[JobEvent]:
        """Returns the first events of a job after this id."""
        query = select(job_events).where(job_events.c.job_id == job_id, job_events.c.id > after)
        return self._events(query.order_by(job_events.c.id).limit(limit))

    def recently_active(self, since: datetime, limit: int) -> list[str]:
        """Returns the ids of jobs that held workers then or later, the latest first, at most `limit`.

        Looks at the last _RECENT events alone.
        """
        latest = select(job_events).order_by(job_events.c.id.desc()).limit(_RECENT).subquery()
        held = latest.c.state.not_in([State.QUEUED, State.PAUSED]) & (latest.c.attempt > 0)
        order = func.max(latest.c.id).desc()
        query = select(latest.c.job_id).where(latest.c.at >= since, held)
        with database.reading(self._engine) as connection:
            found = connection.execute(query.group_by(latest.c.job_id).order_by(order).limit(limit))
            return list(found.scalars())

    def events_of_jobs(self, job_ids: Collection[str], *, limit: int) -> list[JobEvent]:
        """Returns the last events of these jobs, in their order, at most `limit`."""
        query = select(job_events).where(job_events.c.job_id.in_(job_ids))
        return self._events(query.order_by(job_events.c.id.desc()).limit(limit))[::-1]

    def last_events(self, job_ids: Collection[str]) -> dict[str, int]:
        """Returns the id of each job's last event."""
        if not job_ids:
            return {}
        last = func.max(job_events.c.id).label("last")
        query = select(job_events.c.job_id, last).where(job_events.c.job_id.in_(job_ids))
        with database.reading(self._engine) as connection:
            rows = connection.execute(query.group_by(job_events.c.job_id))
            return {row.job_id: row.last for row in rows}

    def events(
        self, *, after: int, up_to: int, limit: int, **filters: Unpack[Filters]
    ) -> list[tuple[JobEvent, str]]:
        """Returns the first events after one id, up to another, of jobs that match, and their names."""
        query = (
            select(job_events, jobs.c.name)
            .join(jobs, jobs.c.id == job_events.c.job_id)
            .where(job_events.c.id > after, job_events.c.id <= up_to, *conditions(filters))
            .order_by(job_events.c.id)
            .limit(limit)
        )
        with database.reading(self._engine) as connection:
            return [(_event_of(row), row.name) for row in connection.execute(query)]

    def event_horizon(self) -> EventHorizon:
        return EventHorizon(self._engine)

    def _events(self, query: Select[Any]) -> list[JobEvent]:
        with database.reading(self._engine) as connection:
            return [_event_of(row) for row in connection.execute(query)]


class EventHorizon:
    """Up to which id every event is there: none with a lower id will still be committed. Thread-safe.

    An id that is missing below another one is that of a transaction that has not ended, or of none. Such a
    transaction is older than the snapshot in which the later id is seen. Once every transaction of that
    snapshot has ended, what is missing will never come. If no id is missing, there is nothing to wait for.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._lock = threading.Lock()
        self._settled: int | None = None
        self._waiting: tuple[int, int] | None = None  # an id, and the transactions that may be missing below

    def now(self) -> int | None:
        """Returns the id; None while it is not known, which it is once every open transaction has ended.

        Raises Unavailable.
        """
        with self._lock, database.reading(self._engine) as connection:
            seen = _look(connection, self._settled)
            complete = self._settled is not None and seen.last - self._settled == seen.count
            if complete or seen.oldest_open == seen.next_transaction:
                self._settle(seen.last)
            elif self._waiting is None:
                self._waiting = (seen.last, seen.next_transaction)
            elif seen.oldest_open >= self._waiting[1]:
                self._settle(self._waiting[0])
            return self._settled

    def wait(self) -> int:
        """Returns the id, and waits for it for up to two seconds. Raises Unavailable."""
        deadline = time.monotonic() + _SECONDS_TO_SETTLE
        while (settled := self.now()) is None:
            if time.monotonic() > deadline:
                raise Unavailable("the database", "a transaction that changes jobs does not end")
            time.sleep(_SECONDS_BETWEEN)
        return settled

    def _settle(self, last: int) -> None:
        self._settled, self._waiting = max(last, self._settled or 0), None


@dataclass(frozen=True, kw_only=True)
class _Look:
    """What one snapshot shows. count: the events after the settled one, up to the `last`.

    oldest_open: the oldest transaction that has not ended. next_transaction: the first that had not begun.
    """

    last: int
    count: int
    oldest_open: int
    next_transaction: int


def _look(connection: Connection, settled: int | None) -> _Look:
    # In one statement, so that the events and the transactions are those of one snapshot.
    if connection.dialect.name == "postgresql":
        snapshot = "pg_snapshot_{}(pg_current_snapshot())::text::bigint"
        open_transactions = [text(snapshot.format("xmin")), text(snapshot.format("xmax"))]
    else:
        open_transactions = [text("0"), text("0")]
    last = select(func.coalesce(func.max(job_events.c.id), 0)).scalar_subquery()
    if settled is None:
        count: Any = literal(0)
    else:
        count = select(func.count()).where(job_events.c.id > settled).scalar_subquery()
    row = connection.execute(select(last, count, *open_transactions)).one()
    return _Look(last=max(row[0], settled or 0), count=row[1], oldest_open=row[2], next_transaction=row[3])


def _event_of(row: Row[Any]) -> JobEvent:
    values = {column.name: getattr(row, column.name) for column in job_events.columns}
    return JobEvent(**{**values, "state": State(row.state)})
