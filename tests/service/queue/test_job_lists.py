"""Lists of jobs in several orders: pages forwards and backwards have no gap and need no sort of all jobs."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

import pytest
from sqlalchemy import Engine

from service.errors import Refused
from service.jobs.job import State, utc_now
from service.queue import cursors, database
from service.queue.filters import Filters
from service.queue.job_lists import Order, page_query
from service.queue.store import Store
from tests.service.queue.test_long_lists import _NEWEST, _WHOLE, plan
from tests.service.queue.test_store import create

_NAMES = ["b", "a", "b", "c d", "a", "日本", "b"]


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    made = database.make_engine(database_url)
    yield made
    made.dispose()


def made(store: Store) -> dict[Order, list[str]]:
    """Makes jobs, of which some have ended; returns their ids in each order."""
    found = [create(store, name=name) for name in _NAMES]
    ends = [found[4].id, found[0].id, found[5].id]
    for job_id in ends:
        store.request_cancel(job_id)
    longest = {found[1].id: 7.25, found[6].id: 7.5, found[2].id: 0.001, found[3].id: 86_400.5}
    for job_id, seconds in longest.items():
        assert store.move(store.get(job_id), State.STARTING, attempt=1, workers=1)
        started = store.get(job_id).created_at
        assert store.move(store.get(job_id), State.RUNNING, started_at=started)
        end = started + timedelta(seconds=seconds)
        assert store.move(store.get(job_id), State.SUCCEEDED, finished_at=end)
    newest = [job.id for job in reversed(found)]
    ended = sorted((store.get(each).finished_at or utc_now(), each) for each in [*ends, *longest])
    return {
        Order.NEWEST: newest,
        Order.OLDEST: newest[::-1],
        Order.NAME: [job.id for job in sorted(found, key=lambda job: (job.name, job.id))],
        Order.ENDED: [job_id for _, job_id in reversed(ended)],
        Order.LONGEST: sorted(longest, key=longest.__getitem__, reverse=True),
    }


@pytest.mark.parametrize("order", Order)
def test_pages_forwards_and_backwards_hold_each_job_once(store: Store, order: Order) -> None:
    expected = made(store)[order]
    pages = [store.jobs_page(order, limit=2)]
    while (cursor := pages[-1].after) is not None:
        pages.append(store.jobs_page(order, after=cursor, limit=2))
    back = [pages[-1]]
    while (cursor := back[-1].before) is not None:
        back.append(store.jobs_page(order, before=cursor, limit=2))

    assert [job.id for page in pages for job in page.items] == expected
    assert [job.id for page in reversed(back) for job in page.items] == expected


@pytest.mark.parametrize("order", Order)
def test_filters_hold_in_every_order(store: Store, order: Order) -> None:
    expected = made(store)[order]
    given: Filters = {"name": "b", "states": [State.QUEUED, State.CANCELLED, State.SUCCEEDED]}

    items = store.jobs_page(order, **given).items

    assert [job.id for job in items] == [each for each in expected if store.get(each).name == "b"]


def test_a_job_that_is_deleted_is_in_no_list(store: Store) -> None:
    gone = create(store)
    store.request_cancel(gone.id)
    store.delete_job(gone.id)

    assert [store.jobs_page(order).items for order in Order] == [[]] * len(Order)
    assert store.count_jobs(limit=9) == 0


def test_jobs_are_counted_up_to_a_limit(store: Store) -> None:
    jobs = [create(store, name=name) for name in _NAMES]

    assert store.count_jobs(limit=100) == len(jobs)
    assert store.count_jobs(limit=3) == 3
    assert store.count_jobs(name="b", states=[State.QUEUED, State.FAILED], limit=100) == 3
    assert store.count_jobs(newer_than=jobs[4].id, limit=100) == 2


@pytest.mark.parametrize(
    ("order", "cursor"),
    [
        (Order.NEWEST, "x"),
        (Order.NAME, cursors.encode("no id")),
        (Order.ENDED, cursors.encode_sorted("yesterday", _NEWEST)),
        (Order.ENDED, cursors.encode_sorted("0001-01-01T00:00:00+23:59", _NEWEST)),
        (Order.NAME, cursors.encode_sorted("a\x00", _NEWEST)),
        (Order.LONGEST, cursors.encode_sorted("2026-01-31T08:00:00+00:00", _NEWEST)),
    ],
)
def test_a_cursor_of_another_list_is_refused(store: Store, order: Order, cursor: str) -> None:
    with pytest.raises(Refused):
        store.jobs_page(order, after=cursor)
    with pytest.raises(Refused):
        store.jobs_page(order, before=cursor)


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize(
    ("order", "index", "value"),
    [
        (Order.OLDEST, "", None),
        (Order.NAME, "ix_jobs_name_id", "name-1"),
        (Order.ENDED, "ix_jobs_finished_at", "2026-01-31T08:00:00+00:00"),
        (Order.LONGEST, "ix_jobs_took", "2026-01-31T08:00:00+00:00 2026-01-31T07:00:00+00:00"),
    ],
)
def test_no_order_reads_all_jobs(
    engine: Engine, order: Order, index: str, value: str | None, *, backwards: bool
) -> None:
    cursor = cursors.encode(_NEWEST) if value is None else cursors.encode_sorted(value, _NEWEST)

    found = plan(engine, page_query(order, {}, cursor=cursor, backwards=backwards, limit=51))

    assert index in found
    assert not any(word in found for word in _WHOLE)
