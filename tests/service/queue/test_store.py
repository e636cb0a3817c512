from __future__ import annotations

import inspect
import math
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import text

from service.errors import Conflict, KeyReused, NotFound, Refused, Unavailable
from service.jobs.job import Job, State, utc_now
from service.queue import database, storable
from service.queue.store import Store
from service.queue.tables import metadata
from testing.postgres import Postgres
from testing.warm import warm
from tests.service.examples import make_spec

SPEC = make_spec()
T = TypeVar("T")
UNKNOWN = "j" + "0" * 20


def create(store: Store, **changes: object) -> Job:
    return store.create_job(make_spec(**changes))[0]


def start(store: Store, job: Job, workers: int = 2) -> Job:
    assert store.move(job, State.STARTING, attempt=job.attempt + 1, workers=workers)
    return store.get(job.id)


def run(store: Store, job: Job) -> Job:
    job = start(store, job)
    assert store.move(job, State.RUNNING)
    return store.get(job.id)


def at_once(count: int, action: Callable[[int], T]) -> list[T]:
    """Runs the action in so many threads that begin together."""
    barrier = threading.Barrier(count)

    def together(number: int) -> T:
        barrier.wait()
        return action(number)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(together, range(count)))


# Creation


def test_a_job_reads_back_as_it_was_created(store: Store) -> None:
    spec = make_spec(name="ünï → 🙂", labels={"team": "a"}, priority=5, resources={"cpus_per_worker": 0.5})

    job, created = store.create_job(spec)

    assert created
    assert store.get(job.id) == job
    assert job.created_at.tzinfo is UTC
    assert abs(utc_now() - job.created_at) < timedelta(minutes=1)
    assert make_spec(**job.spec) == spec


def test_the_same_key_and_spec_give_the_same_job(store: Store) -> None:
    job, _ = store.create_job(SPEC, idempotency_key="k")

    assert store.create_job(make_spec(), idempotency_key="k") == (job, False)
    assert len(store.list_jobs()[0]) == 1


def test_the_same_key_with_another_spec_is_refused(store: Store) -> None:
    job, _ = store.create_job(SPEC, idempotency_key="k")

    with pytest.raises(KeyReused, match=job.id):
        store.create_job(make_spec(name="other"), idempotency_key="k")
    assert len(store.list_jobs()[0]) == 1


def test_without_a_key_the_same_spec_makes_two_jobs(store: Store) -> None:
    assert store.create_job(SPEC)[0].id != store.create_job(SPEC)[0].id


def test_of_many_requests_with_one_key_at_once_one_makes_the_job(store: Store) -> None:
    answers = at_once(8, lambda _: store.create_job(SPEC, idempotency_key="k"))

    assert len({job.id for job, _ in answers}) == 1
    assert sum(created for _, created in answers) == 1


@pytest.mark.parametrize("job_id", [UNKNOWN, "", "nope", "\0", "é"])
def test_an_unknown_job_is_not_found(store: Store, job_id: str) -> None:
    with pytest.raises(NotFound):
        store.get(job_id)
    with pytest.raises(NotFound):
        store.request_cancel(job_id)


# Lists


def test_pages_go_from_the_newest_to_the_oldest_without_gap_or_repeat(store: Store) -> None:
    ids = [create(store).id for _ in range(5)]

    first, cursor = store.list_jobs(limit=2)
    create(store)  # meanwhile: shifts nothing
    second, cursor = store.list_jobs(limit=2, cursor=cursor)
    third, end = store.list_jobs(limit=2, cursor=cursor)

    assert [job.id for job in first + second + third] == ids[::-1]
    assert end is None


def test_a_page_that_is_just_full_is_the_last(store: Store) -> None:
    create(store)
    create(store)

    assert store.list_jobs(limit=2)[1] is None


def test_lists_are_filtered_by_state_id_name_experiment_age_and_every_label(store: Store) -> None:
    one = create(store, name="one", labels={"team": "a", "kind": "x"})
    two = create(store, name="two", labels={"team": "a", "kind": "y"}, tracking={"experiment": 'a "b"'})
    store.request_cancel(two.id)

    def ids(**filters: object) -> list[str]:
        return [job.id for job in store.list_jobs(**filters)[0]]  # type: ignore[arg-type]

    assert ids(states=[State.QUEUED]) == [one.id]
    assert ids(states=[State.QUEUED, State.CANCELLED]) == [two.id, one.id]
    assert ids(name="two") == ids(experiment='a "b"') == [two.id]
    assert ids(experiment="b") == ids(id_prefix="%") == []
    assert ids(id_prefix=one.id[:-3]) == [one.id]
    assert ids(since=one.created_at) == [two.id, one.id]
    assert ids(since=one.created_at + timedelta(microseconds=1)) == ids(since=two.created_at) == [two.id]
    assert ids(since=datetime.min.replace(tzinfo=UTC)) == [two.id, one.id]
    assert ids(since=datetime.max.replace(tzinfo=UTC)) == []
    assert ids(labels=[("team", "a")]) == [two.id, one.id]
    assert ids(labels=[("team", "a"), ("kind", "x")]) == [one.id]
    assert ids(labels=[("team", "b")]) == []
    assert ids(labels=[("kind", "x"), ("kind", "y")]) == []


@pytest.mark.parametrize(
    ("pattern", "matched"),
    [
        ("digits-*", {"digits-1", "digits-[a]", "digits-"}),
        ("digits-?", {"digits-1"}),
        ("*-[a]", {"digits-[a]"}),
        ("D*", {"Digits-1"}),
        ("*_%", {"50_%"}),
        ("*%", {"50_%"}),
        ("?0_?", {"50_%"}),
        (r"a\*", {"a*"}),
        (r"a\*?", {"a*b"}),
        (r"c:\\?", {r"c:\d"}),
        (r"c:\d", {r"c:\d"}),  # a text without * and ? is the name itself
        ("a*b*", {"a*b"}),
        ("日*", {"日本"}),
        ("日?", {"日本"}),
        ("*" + "1*" * 200, set()),
    ],
)
def test_names_match_patterns(store: Store, pattern: str, matched: set[str]) -> None:
    names = ["digits-1", "digits-[a]", "digits-", "Digits-1", "50_%", "a*", "a*b", r"c:\d", "日本", "1" * 100]
    made = {name: create(store, name=name) for name in names}
    for labels in ({}, {"team": "a"}):  # a deleted job is in no list
        deleted = create(store, name="digits-1", labels=labels)
        store.request_cancel(deleted.id)
        store.delete_job(deleted.id)

    found, _ = store.list_jobs(name=pattern)

    assert [job.id for job in found] == [made[name].id for name in reversed(names) if name in matched]


def test_pages_of_a_pattern_have_no_gap(store: Store) -> None:
    made = [create(store, name=f"a-{number}").id for number in range(5)]
    store.request_cancel(made[2])
    first, cursor = store.list_jobs(name="a*", states=[State.QUEUED], limit=2)
    rest, end = store.list_jobs(name="a*", states=[State.QUEUED], limit=2, cursor=cursor)

    assert [job.id for job in first + rest] == [made[number] for number in (4, 3, 1, 0)]
    assert end is None


@pytest.mark.parametrize("cursor", ["", "x", "AAAA", "é", "ajAwMDAwMDAwMDAwMDAwMDAwMDA'", "=" * 9])
def test_a_cursor_that_was_not_given_out_is_refused(store: Store, cursor: str) -> None:
    with pytest.raises(Refused) as caught:
        store.list_jobs(cursor=cursor)
    assert caught.value.problems[0].key == "cursor"


def test_the_queue_is_in_order_of_priority_then_age(store: Store) -> None:
    old, low, high, young = (create(store, priority=priority) for priority in (0, -1, 9, 0))
    start(store, create(store, priority=99))

    assert [job.id for job in store.queue()] == [high.id, old.id, young.id, low.id]


def test_active_jobs_are_those_that_hold_workers(store: Store) -> None:
    create(store)
    starting, running = start(store, create(store)), run(store, create(store))

    assert [job.id for job in store.active()] == [starting.id, running.id]


def test_paused_and_ended_jobs_give_the_scheduler_nothing_to_do(store: Store) -> None:
    assert not store.has_unended()
    job = create(store)
    assert store.has_unended()
    job = run(store, job)
    assert store.has_unended()
    store.move(job, State.SUCCEEDED)
    assert not store.has_unended()


# Moves


def test_a_job_goes_its_way_and_its_times_are_kept(store: Store) -> None:
    job = run(store, create(store))
    assert (job.attempt, job.workers, job.reason) == (1, 2, "")
    assert job.started_at is not None
    assert job.finished_at is None

    error = {"type": "ValueError", "message": "no \0", "rank": 1, "log_tail": "…"}
    assert store.move(job, State.FAILED, reason="ValueError: no \0 \ud800", error=error)

    ended = store.get(job.id)
    assert (ended.state, ended.error, ended.reason) == (State.FAILED, error, "ValueError: no ? ?")
    assert ended.finished_at is not None
    assert job.started_at <= ended.finished_at


def test_a_relaunched_job_gives_its_workers_back_and_keeps_its_first_start(store: Store) -> None:
    first = run(store, create(store))
    assert store.move(first, State.QUEUED, failures=1, reason="a worker was lost")

    waiting = store.get(first.id)
    assert (waiting.workers, waiting.failures, waiting.attempt) == (None, 1, 1)
    again = run(store, waiting)
    assert (again.attempt, again.started_at) == (2, first.started_at)


def test_a_move_from_a_state_that_has_passed_changes_nothing(store: Store) -> None:
    seen = create(store)
    start(store, seen)

    assert not store.move(seen, State.CANCELLED)
    assert store.get(seen.id).state is State.STARTING


def test_of_two_ends_of_a_job_the_first_stays(store: Store) -> None:
    seen = run(store, create(store))
    assert store.move(seen, State.FAILED, reason="out of memory")

    assert not store.move(seen, State.SUCCEEDED)
    assert store.get(seen.id).reason == "out of memory"


def test_a_move_from_the_same_state_of_an_earlier_attempt_changes_nothing(store: Store) -> None:
    seen = create(store)
    assert store.move(start(store, seen), State.QUEUED)

    assert not store.move(seen, State.STARTING, attempt=1)
    assert store.get(seen.id).attempt == 1


def test_a_move_that_the_table_does_not_know_is_a_bug(store: Store) -> None:
    with pytest.raises(AssertionError):
        store.move(create(store), State.SUCCEEDED)


def test_a_reason_is_bounded_and_says_where_the_rest_is(store: Store) -> None:
    job, said = create(store), "x" * 1_000_000
    store.note(job, said)

    noted = store.get(job.id)
    assert len(noted.reason) == storable.LONGEST_REASON
    assert noted.reason.endswith("x… (the full text is in the logs)")
    assert store.move(noted, State.STARTING, attempt=1, reason=said)
    assert store.get(job.id).reason == noted.reason


def test_an_error_may_quote_what_is_no_text(store: Store) -> None:
    job = run(store, create(store))
    error = {"type": "E", "message": "torn \ud83d", "rank": 1, "more": [{"a": math.nan}]}

    assert store.move(job, State.FAILED, error=error)

    assert store.get(job.id).error == {"type": "E", "message": "torn ?", "rank": 1, "more": [{"a": None}]}


def test_of_many_schedulers_one_starts_the_job(store: Store) -> None:
    job = create(store)

    won = at_once(8, lambda number: store.move(job, State.STARTING, attempt=1, workers=number + 1))

    assert sum(won) == 1
    assert store.get(job.id).workers == won.index(True) + 1


def test_a_note_is_for_the_job_as_it_was_seen(store: Store) -> None:
    seen = create(store)
    store.note(seen, "waits behind 1 job")
    assert store.get(seen.id).reason == "waits behind 1 job"

    start(store, seen)
    store.note(seen, "too late")
    assert store.get(seen.id).reason == ""


def test_many_notes_are_each_for_the_job_as_it_was_seen(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.queue.store.NOTES_AT_ONCE", 2)
    first, gone, *others = (create(store) for _ in range(5))
    start(store, gone)

    store.note_all((job, f"waits for {job.id}") for job in (*others, gone, first))

    assert all(store.get(job.id).reason == f"waits for {job.id}" for job in (first, *others))
    assert store.get(gone.id).reason == ""


# Cancelling


def test_a_waiting_job_is_cancelled_at_once(store: Store) -> None:
    job = store.request_cancel(create(store).id)

    assert job.state is State.CANCELLED
    assert job.reason == "cancelled while it waited"
    assert job.finished_at == job.cancel_requested_at is not None


def test_a_running_job_is_marked_once(store: Store) -> None:
    job = run(store, create(store))

    first = store.request_cancel(job.id)
    second = store.request_cancel(job.id)

    assert first.state is State.RUNNING
    assert first.cancel_requested_at is not None
    assert first == second


def test_cancelling_again_is_harmless_but_what_ended_otherwise_cannot_be_cancelled(store: Store) -> None:
    cancelled, failed = create(store), run(store, create(store))
    store.move(failed, State.FAILED)

    assert store.request_cancel(cancelled.id) == store.request_cancel(cancelled.id)
    with pytest.raises(Conflict, match="failed already"):
        store.request_cancel(failed.id)


def test_a_job_to_be_cancelled_does_not_go_back_to_the_queue(store: Store) -> None:
    seen = run(store, create(store))
    store.request_cancel(seen.id)

    assert not store.move(seen, State.QUEUED, failures=1)
    assert store.move(store.get(seen.id), State.CANCELLED)


def test_a_cancel_is_never_lost_however_it_meets_a_start(store: Store) -> None:
    for _ in range(10):
        job = create(store)
        at_once(
            2,
            lambda number, job=job: (  # type: ignore[misc]
                store.move(job, State.STARTING, attempt=1, workers=1)
                if number
                else store.request_cancel(job.id)
            ),
        )

        after = store.get(job.id)
        assert after.cancel_requested_at is not None
        assert after.state in {State.CANCELLED, State.STARTING}


# Runs and archives


def test_a_job_is_linked_to_its_run(store: Store) -> None:
    job = create(store)
    store.set_run(job.id, "7", "abc")

    found = store.get(job.id)
    assert (found.experiment_id, found.run_id) == ("7", "abc")


def test_an_ended_job_is_unarchived_until_it_is_marked(store: Store) -> None:
    create(store)
    ended = store.request_cancel(create(store).id)
    assert [job.id for job in store.unarchived()] == [ended.id]

    assert store.mark_archived(ended)
    first = store.get(ended.id).archived_at
    assert store.mark_archived(ended)

    assert store.unarchived() == []
    assert store.get(ended.id).archived_at == first is not None


# Code


def test_code_is_kept_once_under_its_digest(store: Store) -> None:
    data = bytes(range(256)) * 1000

    digests = at_once(4, lambda _: store.put_code(data))

    assert set(digests) == {store.put_code(data)}
    assert store.has_code(digests[0])
    assert store.get_code(digests[0]) == data


def test_unknown_code_is_not_found(store: Store) -> None:
    assert not store.has_code("0" * 64)
    with pytest.raises(NotFound):
        store.get_code("0" * 64)


# Databases


def test_what_has_ended_is_not_looked_through_for_what_is_left_to_do(postgres: Postgres) -> None:
    url = postgres.create("many_ended")  # a new one: statistics of what others did would choose the plan
    store, engine = Store(url), database.make_engine(url)
    store.migrate()
    for _ in range(3):
        job = store.request_cancel(create(store).id)
        store.mark_archived(job)
    left = store.request_cancel(create(store).id)

    assert [job.id for job in store.unarchived()] == [left.id]

    with engine.connect() as connection:
        connection.execute(text("SET enable_seqscan = off"))
        found = connection.execute(
            text(
                "EXPLAIN SELECT * FROM jobs WHERE archived_at IS NULL "
                "AND state IN ('succeeded', 'failed', 'cancelled') ORDER BY id"
            )
        ).scalars()
        assert "ix_jobs_unarchived" in " ".join(found)
    store.close()
    engine.dispose()


@pytest.mark.filterwarnings("ignore:.*expression-based index")  # SQLAlchemy cannot read it of SQLite
def test_the_migrations_make_the_tables_that_the_code_uses(store: Store, database_url: str) -> None:
    store.check()
    engine = database.make_engine(database_url)
    with engine.connect() as connection:
        difference = compare_metadata(MigrationContext.configure(connection), metadata)
    engine.dispose()

    assert difference == []


def test_tables_of_a_newer_version_are_refused_and_stay(empty_database_url: str) -> None:
    store, engine = Store(empty_database_url), database.make_engine(empty_database_url)
    store.migrate()
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))

    with pytest.raises(Refused, match="newer version"):
        store.migrate()

    with engine.connect() as connection:
        assert connection.execute(text("SELECT version_num FROM alembic_version")).scalar() == "9999"
    store.close()
    engine.dispose()


@pytest.mark.full
def test_a_migration_that_computes_for_long_between_its_statements_is_not_ended(
    postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    upgrade = database._upgrade

    def slowly(config: Any) -> None:
        time.sleep(1.5)
        upgrade(config)

    monkeypatch.setattr(database, "_IDLE_TRANSACTION_MS", 1_000)
    monkeypatch.setattr(database, "_upgrade", slowly)
    store = Store(postgres.create("slowly_migrated"))

    store.migrate()
    monkeypatch.undo()

    store.close()


def test_several_processes_may_migrate_an_empty_database_at_once(empty_database_url: str) -> None:
    with ProcessPoolExecutor(3, mp_context=warm("service.queue.store", "psycopg")) as pool:
        ids = list(pool.map(_migrate_and_create, [empty_database_url] * 3))

    assert len(set(ids)) == 3


def _migrate_and_create(url: str) -> str:
    store = Store(url)
    store.migrate()
    try:
        return store.create_job(SPEC)[0].id
    finally:
        store.close()


def test_writers_in_several_processes_wait_for_each_other(database_url: str) -> None:
    with ProcessPoolExecutor(3, mp_context=warm("service.queue.store", "psycopg")) as pool:
        counts = list(pool.map(_create_many, [database_url] * 3))

    store = Store(database_url)
    assert sum(counts) == len(store.queue()) == 90
    store.close()


def _create_many(url: str) -> int:
    store = Store(url)
    created = [store.create_job(SPEC)[1] for _ in range(30)]
    store.close()
    return sum(created)


def test_what_was_created_survives_a_kill_at_any_moment(database_url: str) -> None:
    code = (
        "from service.queue.store import Store\n"
        "from tests.service.examples import make_spec\n"
        f"store = Store({database_url!r})\n"
        "while True: print(store.create_job(make_spec(labels={'a': 'b'}))[0].id, flush=True)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        acknowledged = [process.stdout.readline().strip() for _ in range(20)]
        process.kill()
        acknowledged += process.stdout.read().split("\n")[:-1]

    store = Store(database_url)
    found, _ = store.list_jobs(labels=[("a", "b")], limit=10_000)
    store.close()
    assert set(acknowledged) <= {job.id for job in found}
    assert len(found) - len(acknowledged) in {0, 1}  # one may have been committed but not printed yet


def test_a_restarted_database_costs_a_reconnect_not_an_error(postgres: Postgres, postgres_url: str) -> None:
    store = Store(postgres_url)
    job, _ = store.create_job(SPEC)

    postgres.disconnect("migrated")

    assert store.get(job.id) == job
    store.close()


def test_a_writer_of_sqlite_locks_at_once_and_readers_go_on(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    engine = database.make_engine(f"sqlite:///{path}")
    database.migrate(engine)

    other = sqlite3.connect(path, timeout=0, isolation_level=None)
    with database.writing(engine):
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            other.execute("BEGIN IMMEDIATE")
        assert other.execute("SELECT count(*) FROM jobs").fetchone() == (0,)
    with database.reading(engine):
        other.execute("BEGIN IMMEDIATE")
        other.rollback()
    other.close()
    engine.dispose()


def test_what_sqlite_has_written_survives_a_power_cut(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "jobs.db")

    inspect.unwrap(database._set_up_sqlite)(connection, None)

    assert connection.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL
    connection.close()


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:"])
def test_a_queue_in_memory_is_refused(url: str) -> None:
    with pytest.raises(Refused, match="name a file"):
        Store(url)


@pytest.mark.parametrize(
    "url",
    [
        "sqlite:////nowhere/at/all/jobs.db",
        "postgresql://postgres@127.0.0.1:1/x",
        "postgres://u@127.0.0.1:1/x",
    ],
)
def test_a_database_that_is_away_is_unavailable(url: str) -> None:
    store = Store(url)

    with pytest.raises(Unavailable, match="the database is not reachable"):
        store.check()
    with pytest.raises(Unavailable):
        store.create_job(SPEC)
    with pytest.raises(Unavailable):
        store.migrate()
    store.close()
