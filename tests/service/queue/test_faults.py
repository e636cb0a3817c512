"""A database that is frozen, read-only or full: each call ends in time, and the check names what is wrong."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event

from service.errors import Unavailable
from service.queue import database
from service.queue.postgres import Connection
from service.queue.store import Store
from testing.postgres import Postgres
from tests.service.examples import make_spec

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
