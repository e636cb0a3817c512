"""A database that is frozen, read-only or full: each call ends in time, and the check names what is wrong."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, text

from service.api.app import create_app
from service.backends.memory_tracking import FakeResults
from service.doctor import database as doctor
from service.errors import Unavailable
from service.queue import database, room
from service.queue.postgres import Connection
from service.queue.store import Store
from service.settings import Settings
from testing.postgres import NotInstalled, Postgres
from testing.postgres import postgres as started_postgres
from tests.service.examples import make_spec
from tests.service.serving import Stage
from tests.small_disk import fill, small_disk

SPEC = make_spec()


def test_a_frozen_server_is_given_up_and_comes_back(
    postgres: Postgres, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Connection, "deadline_s", 0.5)
    monkeypatch.setattr(database, "CONNECT_S", 2)
    store = Store(postgres_url)
    store.create_job(SPEC)
    postgres.freeze()
    try:
        begun = time.monotonic()
        with pytest.raises(Unavailable, match="the database"):
            store.create_job(SPEC)
        assert time.monotonic() - begun < 30
        with pytest.raises(Unavailable, match="not tried again yet"):
            store.check()
    finally:
        postgres.thaw()
    while True:
        try:
            store.create_job(SPEC)
            break
        except Unavailable:
            time.sleep(0.1)
    assert len(store.list_jobs()[0]) == 2
    store.close()


def test_a_statement_without_an_answer_closes_its_connection(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Connection, "deadline_s", 0.2)
    with Connection.connect(postgres_url) as connection:
        with pytest.raises(Exception, match=r"no answer in 0\.2 s"):
            connection.execute("SELECT pg_sleep(30)")
        assert connection.closed


def test_a_server_that_is_read_only_is_unavailable_to_writers(postgres: Postgres, postgres_url: str) -> None:
    store = Store(postgres_url)
    job, _ = store.create_job(SPEC)
    with postgres.connect("migrated") as admin:
        admin.execute("ALTER DATABASE migrated SET default_transaction_read_only = on")
    postgres.disconnect("migrated")
    try:
        for call in (store.check, lambda: store.create_job(SPEC)):
            with pytest.raises(Unavailable, match="read-only"):
                call()
        assert store.get(job.id) == job
    finally:
        with postgres.connect("postgres") as admin:
            admin.execute("ALTER DATABASE migrated RESET default_transaction_read_only")
        postgres.disconnect("migrated")
        store.close()


def with_pragma(store: Store, pragma: str) -> None:
    def execute(connection: Any, _record: object) -> None:
        connection.execute(f"PRAGMA {pragma}")

    store._engine.dispose()
    event.listen(store._engine, "connect", execute)


def test_sqlite_that_is_read_only_is_unavailable_to_writers(sqlite_store: Store) -> None:
    job, _ = sqlite_store.create_job(SPEC)
    with_pragma(sqlite_store, "query_only = ON")

    for call in (sqlite_store.check, lambda: sqlite_store.create_job(SPEC)):
        with pytest.raises(Unavailable, match="readonly"):
            call()
    assert sqlite_store.get(job.id) == job


def test_sqlite_on_a_full_disk_is_unavailable(sqlite_store: Store) -> None:
    with_pragma(sqlite_store, "max_page_count = 1")

    def fill() -> None:
        for _ in range(1_000):
            sqlite_store.create_job(SPEC)

    with pytest.raises(Unavailable, match="full"):
        fill()


def test_a_file_that_is_no_database_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "jobs.db").write_bytes(b"no database" * 1_000)
    store = Store(f"sqlite:///{tmp_path / 'jobs.db'}")

    with pytest.raises(Unavailable, match="not a database"):
        store.check()
    store.close()


@pytest.fixture
def crowded(full_run: None) -> Iterator[tuple[Path, str]]:  # noqa: ARG001
    """A disk that is to be filled, and the URL of a database on it."""
    with (
        tempfile.TemporaryDirectory(prefix="syncbn-disk-", dir="/tmp") as parent,
        small_disk(Path(parent) / "disk", mib=160) as disk,
    ):
        Path(parent).chmod(0o755)
        try:
            with started_postgres(disk) as server:
                yield disk, server.create("crowded")
        except NotInstalled as error:
            pytest.skip(str(error))


def test_a_server_on_a_full_disk_is_unavailable_until_there_is_room(
    crowded: tuple[Path, str], stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "SECONDS_BETWEEN", 0.0)
    disk, url = crowded
    store = Store(url)
    store.migrate()
    for _ in range(20):
        store.check()
    with stage.showing(create_app(Settings(storage="/nowhere"), store, FakeResults())) as api:

        def database() -> dict[str, str]:
            answer: dict[str, str] = api.get("/readyz").json()["checks"]["database"]
            return answer

        with_room = database()
        filling = fill(disk, share=1.0)
        full, doctors = database(), [each.message for each in doctor.check(url)]
        filling.unlink()
        again = database()

    assert with_room == again == {"state": "ok", "message": ""}
    assert full["state"] == "unavailable"
    assert "No space left on device" in full["message"]
    assert doctors[0].startswith("its disk is full")
    with store._engine.begin() as connection:
        assert connection.execute(text("SELECT to_regclass('syncbn_room')")).scalar() is None
    store.close()


def test_room_is_looked_for_once_a_minute(postgres_url: str) -> None:
    store, seen = Store(postgres_url), list[str]()
    event.listen(store._engine, "before_cursor_execute", lambda *given: seen.append(given[2]))

    for _ in range(5):
        store.check()

    assert sum("syncbn_room" in statement for statement in seen) == 1
    store.close()


def test_a_role_that_may_not_create_temporary_tables_can_check_the_rest(
    postgres: Postgres, postgres_url: str
) -> None:
    with postgres.connect("migrated") as admin:
        admin.execute("CREATE ROLE poor LOGIN")
        admin.execute("REVOKE TEMPORARY ON DATABASE migrated FROM PUBLIC")
        admin.execute("GRANT SELECT, UPDATE ON jobs TO poor")
    store = Store(postgres_url.replace("postgres@", "poor@"))
    try:
        store.check()
    finally:
        store.close()
        with postgres.connect("migrated") as admin:
            admin.execute("GRANT TEMPORARY ON DATABASE migrated TO PUBLIC")
            admin.execute("DROP OWNED BY poor")
            admin.execute("DROP ROLE poor")
