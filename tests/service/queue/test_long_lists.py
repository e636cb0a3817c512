"""Lists of jobs are read in order from an index: a page takes as long however many jobs there are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import Engine, Select, text

from service.errors import Refused
from service.jobs.job import Job, State, new_job, utc_now
from service.queue import database, filters
from service.queue.queue_pages import QueuedPage, page_query
from service.queue.rows import insert_jobs
from service.queue.store import Store
from tests.service.examples import make_spec
from tests.service.queue.test_migrations import migrate_to
from tests.service.queue.test_store import UNKNOWN, create, start

_STATES = (State.QUEUED, State.FAILED)
_SORTS = ("TEMP B-TREE", "Sort")
_NEWEST = "jz" + "0" * 19
"""Newer than every job: a planner that knows the ids does not take it for an end of the list."""
_WHOLE = ("SCAN jobs\n", "Seq Scan")


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    """Of a database in which jobs differ in all that can be filtered."""
    made = database.make_engine(database_url)
    with made.begin() as connection:
        insert_jobs(connection, [replace(_job(number), state=_STATES[number % 2]) for number in range(40)])
    yield made
    made.dispose()


def _job(number: int) -> Job:
    spec = make_spec(
        name=f"name-{number % 4}",
        labels={"team": f"team-{number % 5}"},
        tracking={"experiment": f"experiment-{number % 3}"},
    )
    return new_job(spec, created_at=utc_now())


def plan(engine: Engine, query: Select[Any]) -> str:
    """Returns how the database would answer the query if it avoided to sort and to read whole tables."""
    statement = str(query.compile(engine, compile_kwargs={"literal_binds": True}))
    is_sqlite = engine.dialect.name == "sqlite"
    with engine.connect() as connection:
        if not is_sqlite:
            for way in ("seqscan", "sort", "bitmapscan"):
                connection.execute(text(f"SET enable_{way} = off"))
        rows = connection.exec_driver_sql(f"EXPLAIN {'QUERY PLAN ' if is_sqlite else ''}{statement}").all()
        connection.rollback()
    return "".join(f"{row[-1]}\n" for row in rows)


FILTERS: dict[str, list[filters.Filters]] = {
    "": [{}, {"since": utc_now()}, {"id_prefix": "j1k0"}],  # the primary key
    "ix_jobs_state_id": [{"states": [State.FAILED]}],
    "ix_jobs_name_id": [{"name": "name-1"}],
    "ix_jobs_experiment_id": [{"experiment": "experiment-1"}],
    "ix_jobs_sweep_id_id": [{"sweep": "s1k0w1qk530wdg8e15q54"}],
    "ix_job_labels_key_value_job_id": [{"labels": [("team", "team-1")]}],
}


def test_pages_are_read_in_order_from_an_index(engine: Engine) -> None:
    plans = {
        (index, str(given), before): plan(engine, filters.page(given, before=before, limit=51))
        for index, several in FILTERS.items()
        for given in several
        for before in (None, _NEWEST)
    }
    plans |= {
        ("ix_jobs_queue", "queue", str(after)): plan(engine, page_query(after, limit=51))
        for after in (None, (0, UNKNOWN))
    }

    wrong = {
        case: found
        for case, found in plans.items()
        if case[0] not in found or any(word in found for word in (*_SORTS, *_WHOLE))
    }
    assert wrong == {}


@pytest.mark.parametrize("pattern", ["name-*", "*-1"])
def test_names_that_match_a_pattern_are_found_in_an_index(engine: Engine, pattern: str) -> None:
    if engine.dialect.name == "postgresql":
        pytest.skip("PostgreSQL plans a pattern by its statistics")
    found = plan(engine, filters.page({"name": pattern}, before=_NEWEST, limit=51))

    assert "ix_jobs_name_id" in found
    assert not any(word in found for word in _WHOLE)


def test_several_states_are_one_list(store: Store) -> None:
    made = [create(store) for _ in range(7)]
    for job in made[::3]:
        store.request_cancel(job.id)
    store.request_pause(made[1].id)
    listed: list[str] = []
    cursor = None
    while True:
        page, cursor = store.list_jobs(states=[State.QUEUED, State.CANCELLED], cursor=cursor, limit=2)
        listed += [job.id for job in page]
        if cursor is None:
            break

    assert listed == [job.id for job in reversed(made) if job is not made[1]]


def test_pages_of_the_queue_have_no_gap_and_positions_from_its_head(store: Store) -> None:
    waiting = [create(store, priority=priority) for priority in (0, -1, 9, 0, 9, 0)]
    start(store, create(store, priority=99))
    in_order = [waiting[number].id for number in (2, 4, 0, 3, 5, 1)]

    pages = _pages(store, limit=2)

    assert [[job.id for job in page.items] for page in pages] == [in_order[:2], in_order[2:4], in_order[4:]]
    assert [job.position for page in pages for job in page.items] == [1, 2, 3, 4, 5, 6]
    assert {page.total for page in pages} == {6}
    assert [job.id for job in store.queue()] == in_order


def test_a_job_that_starts_between_two_pages_moves_the_others_up(store: Store) -> None:
    first, second, third = (create(store) for _ in range(3))
    page = store.queue_page(limit=2)
    start(store, first)

    rest = store.queue_page(limit=2, cursor=page.next_cursor)

    assert [job.id for job in page.items] == [first.id, second.id]
    assert [(job.id, job.position) for job in rest.items] == [(third.id, 2)]


@pytest.mark.parametrize("cursor", ["", "x", "MCBqMQ", "OTk5OTk5OTk5OTkgajFrMHcxcWs1MzB3ZGc4ZTE1cTU0"])
def test_a_cursor_that_the_queue_did_not_give_out_is_refused(store: Store, cursor: str) -> None:
    with pytest.raises(Refused) as caught:
        store.queue_page(cursor=cursor)
    assert caught.value.problems[0].key == "cursor"


def _pages(store: Store, limit: int) -> list[QueuedPage]:
    pages = [store.queue_page(limit=limit)]
    while pages[-1].next_cursor is not None:
        pages.append(store.queue_page(limit=limit, cursor=pages[-1].next_cursor))
    return pages


def test_a_job_of_an_older_version_is_found_by_its_experiment(empty_database_url: str) -> None:
    store, engine = Store(empty_database_url), database.make_engine(empty_database_url)
    store.migrate()
    job = create(store, tracking={"experiment": 'a "b"'})
    migrate_to(engine, "0008", down=True)

    store.migrate()

    assert [found.id for found in store.list_jobs(experiment='a "b"')[0]] == [job.id]
    store.close()
    engine.dispose()
