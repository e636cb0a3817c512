"""Each fault of a database is named: the real thing, broken in the real way."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import text

from service.doctor import clock, database
from service.doctor.finding import Finding, Level
from service.ports import free_port
from service.queue import condition
from service.queue.database import make_engine
from service.queue.store import Store
from testing.postgres import Postgres


def faults(url: str) -> list[str]:
    return [each.message for each in database.check(url) if each.level is Level.FAULT]


def test_a_healthy_database_has_no_fault_and_is_not_changed(database_url: str) -> None:
    found = list(database.check(database_url))

    assert [each.level for each in found] == [Level.OK, Level.OK]
    assert "can be written" in found[0].message
    assert found[1].message == "the database's clock is right"


def test_old_tables_are_named_with_both_revisions(database_url: str) -> None:
    with of_revision(database_url, "0003"):
        (message,) = faults(database_url)

    assert message.startswith("its tables are old: revision 0003, this version needs 00")


def test_tables_of_a_newer_version_are_named(database_url: str) -> None:
    with of_revision(database_url, "9999"):
        messages = faults(database_url)

    assert messages == ["its tables (revision 9999) are those of a newer version of this software"]


@contextmanager
def of_revision(url: str, revision: str) -> Iterator[None]:
    """The tables say so in the context. PostgreSQL's are shared by all tests."""
    before = condition.look(url).head
    set_revision(url, revision)
    yield
    set_revision(url, before)


def set_revision(url: str, revision: str) -> None:
    engine = make_engine(url)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = :revision"), {"revision": revision})
    engine.dispose()


def test_a_database_without_tables_is_named(empty_database_url: str) -> None:
    if path := condition.sqlite_file(empty_database_url):
        sqlite3.connect(path).execute("PRAGMA journal_mode = WAL")

    assert faults(empty_database_url) == ["it has no tables of this service"]


def test_a_file_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    assert faults(f"sqlite:///{tmp_path / 'gone.db'}") == [f"there is no database {tmp_path / 'gone.db'}"]
    assert not (tmp_path / "gone.db").exists()


def test_a_read_only_file_is_named(sqlite_store: Store) -> None:
    path = condition.sqlite_file(str(sqlite_store._engine.url))

    (message,) = faults(f"sqlite:///file:{path}?mode=ro&uri=true")

    assert message.startswith("it is read-only")


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "bad.db").write_bytes(b"no database at all" * 300)

    (message,) = faults(f"sqlite:///{tmp_path / 'bad.db'}")

    assert message.startswith("its file is damaged")


def test_a_lock_that_a_stopped_process_keeps_is_named(
    sqlite_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(condition, "SECONDS", 0)
    holder = sqlite3.connect(str(condition.sqlite_file(str(sqlite_store._engine.url))), isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")

    (message,) = faults(str(sqlite_store._engine.url))

    holder.close()
    assert message.startswith("another process keeps it locked")


@pytest.mark.full
def test_a_server_that_is_down_is_named() -> None:
    (message,) = faults(f"postgresql://nobody@127.0.0.1:{free_port()}/none")

    assert message.startswith("it is down")


def test_a_frozen_server_is_named(migrated_postgres: Postgres) -> None:
    migrated_postgres.freeze()
    try:
        (message,) = faults(migrated_postgres.url("migrated"))
    finally:
        migrated_postgres.thaw()

    assert message.startswith("it is frozen")


def test_a_read_only_server_is_named(migrated_postgres: Postgres) -> None:
    def set_read_only(value: str) -> None:
        with migrated_postgres.connect("postgres") as admin:
            admin.execute(
                psycopg.sql.SQL("ALTER DATABASE migrated SET default_transaction_read_only = {}").format(
                    psycopg.sql.Literal(value)
                )
            )

    set_read_only("on")
    try:
        (message,) = faults(migrated_postgres.url("migrated"))
    finally:
        set_read_only("off")

    assert message.startswith("it is read-only")


@pytest.mark.parametrize(
    ("seconds", "level", "words"),
    [(2.0, "ok", "is right"), (3600.0, "warning", "3600 s ahead of"), (-60.0, "warning", "60 s behind")],
)
def test_a_clock_that_is_off_is_named_with_its_offset(seconds: float, level: str, words: str) -> None:
    (finding,) = clock.offset_finding("the clock of 10.0.0.7", seconds)

    assert isinstance(finding, Finding)
    assert finding.level == level
    assert words in finding.message
