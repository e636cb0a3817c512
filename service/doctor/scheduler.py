"""Checks of the scheduler, by its row in the database: it runs, Ray answers it, it is of this version."""

from __future__ import annotations

from collections.abc import Iterator

from sqlalchemy.exc import DBAPIError

from service.doctor.finding import Finding, fault, ok, warning
from service.doctor.versions import differences
from service.errors import ServiceError
from service.queue import lease
from service.queue.lease import SchedulerRow
from service.queue.store import Store
from service.settings import Settings

ABOUT = "scheduler"


def row_of(url: str) -> SchedulerRow | None:
    """Returns the scheduler's row; None if there is none, or if the database cannot be used."""
    store = Store(url)
    try:
        return store.scheduler()
    except Exception:
        return None
    finally:
        store.close()


def check(settings: Settings) -> Iterator[Finding]:
    """Yields what is wrong with the scheduler."""
    how_to_start = settings.how_to_start("scheduler", lease.HOW_TO_START)
    store = Store(settings.database_url)
    try:
        row = store.scheduler()
    except (ServiceError, DBAPIError):
        advice = "mend the database first: the line about it says how"
        yield warning(ABOUT, "not known, because the database cannot be read", advice)
        return
    finally:
        store.close()
    if absence := lease.absence(row):
        yield fault(ABOUT, absence, how_to_start)
        return
    assert row is not None
    if row.vacant:
        yield fault(ABOUT, f"no scheduler runs: number {row.number} has stepped down", how_to_start)
        return
    yield ok(
        ABOUT, f"number {row.number} is at work, process {row.holder.partition('@')[0]}; others stand by"
    )
    if row.problem:
        advice = "the line about Ray says more; the scheduler goes on by itself when Ray answers"
        yield fault(ABOUT, f"Ray does not answer it: {row.problem}", advice)
    yield from differences("the scheduler", row.versions)
