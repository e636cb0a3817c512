"""Databases as each version left them, with rows in every table, brought up to date: all can be read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import alembic.command
import pytest
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, MetaData, text

from service.errors import Refused
from service.jobs.job import State, new_id, utc_now
from service.queue import database
from service.queue.store import Store
from service.queue.tables import metadata
from tests.service.examples import make_spec

pytestmark = pytest.mark.filterwarnings("ignore:.*expression-based index")
"""SQLAlchemy cannot read these of SQLite."""

NOW = "2026-01-01 00:00:00.000000+00:00"
REVISIONS = [
    each.revision for each in ScriptDirectory.from_config(database.alembic_config()).walk_revisions()
]
VALUES: dict[str, Any] = {
    "INTEGER": 1,
    "BIGINT": 1,
    "BOOLEAN": False,
    "FLOAT": 1.0,
    "TEXT": "text",
    "VARCHAR": "text",
    "JSON": "[]",
    "BLOB": b"x",
    "DATETIME": NOW,
}
"""A value for a column of each type, for those that a version needs and `row` does not know."""
KNOWN: dict[tuple[str, str], Any] = {
    ("jobs", "spec"): json.dumps(make_spec(labels={"team": "a"}).model_dump(mode="json")),
    ("jobs", "restarts"): "[]",
    ("scheduler", "versions"): "{}",
    ("api_keys", "scope"): "read",
    ("webhooks", "states"): "[]",
    ("webhooks", "labels"): "{}",
    ("sweeps", "document"): "{}",
    ("totals", "labels"): "{}",
}


@pytest.fixture
def engine(empty_database_url: str) -> Iterator[Engine]:
    engine = database.make_engine(empty_database_url)
    yield engine
    engine.dispose()


@pytest.mark.parametrize("revision", sorted(REVISIONS))
def test_what_a_version_has_stored_is_kept_and_can_be_read(
    engine: Engine, empty_database_url: str, revision: str
) -> None:
    upgrade(engine, revision)
    with engine.begin() as connection:
        rows = filled(connection)
    store = Store(empty_database_url)

    store.migrate()
    store.migrate()

    with engine.connect() as connection:
        kept = {name: connection.execute(text(f"SELECT count(*) FROM {name}")).scalar_one() for name in rows}
        missing = {
            table.name: set(table.columns.keys()) - set(columns(connection, table.name))
            for table in metadata.sorted_tables
        }
    assert kept == rows
    assert not any(missing.values()), missing
    jobs, _ = store.list_jobs(limit=50)
    assert {job.state for job in jobs} >= {State.QUEUED, State.SUCCEEDED, State.FAILED, State.CANCELLED}
    assert len(jobs) == rows["jobs"]
    assert {store.get(job.id) == job for job in jobs} == {True}
    assert [job.labels for job in store.list_jobs(labels=[("team", "a")])[0]] == [{"team": "a"}]
    assert sum(store.counts().states.values()) == len(jobs)
    assert store.create_job(make_spec())[0].state is State.QUEUED
    store.close()


def test_there_is_no_way_back_in_place(store: Store) -> None:
    """An older version refuses newer tables, whose revision it does not know."""
    engine = store._engine
    with engine.begin() as connection:
        head = connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one()
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))

    with pytest.raises(
        Refused, match="newer version of this software: run that version, or restore a backup"
    ):
        store.migrate()

    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = :head"), {"head": head})
    store.migrate()


def upgrade(engine: Engine, revision: str) -> None:
    config = database.alembic_config()
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        alembic.command.upgrade(config, revision)


def filled(connection: Connection) -> dict[str, int]:
    """Inserts rows into every table that this version has; returns their numbers."""
    there = MetaData()
    there.reflect(connection)
    rows: dict[str, int] = {}
    ids = {"jobs": new_id(utc_now())}
    for table in there.sorted_tables:
        if table.name == "alembic_version":
            continue
        if table.name == "job_events":  # triggers have written them
            rows[table.name] = rows["jobs"]
            continue
        states = [*State] if table.name == "jobs" else [None]
        for state in states:
            row = {
                column.name: _value(table.name, column.name, column.type, state, ids)
                for column in table.columns
                if not column.nullable
            }
            names = ", ".join(f'"{name}"' for name in row)
            marks = ", ".join(f":{name}" for name in row)
            connection.execute(text(f"INSERT INTO {table.name} ({names}) VALUES ({marks})"), row)
        rows[table.name] = len(states)
    return rows


def _value(table: str, column: str, kind: Any, state: State | None, ids: dict[str, str]) -> Any:
    if column == "state" and state is not None:
        return state.value
    if table == "jobs" and column == "id":
        if state is not State.QUEUED:
            return new_id(utc_now())
        return ids["jobs"]
    if table == "job_labels":
        return {"job_id": ids["jobs"], "key": "team", "value": "a"}[column]
    if (table, column) in KNOWN:
        return KNOWN[table, column]
    if table == "scheduler" and column in {"nodes", "id"}:
        return {"nodes": "[]", "id": 1}[column]
    return next(value for name, value in VALUES.items() if name in _name(kind))


def _name(kind: Any) -> str:
    name = str(kind).upper()
    other = {"TIMESTAMP": "DATETIME", "BYTEA": "BLOB", "DOUBLE": "FLOAT"}
    return next((ours for theirs, ours in other.items() if theirs in name), name)


def columns(connection: Connection, table: str) -> list[str]:
    there = MetaData()
    there.reflect(connection, only=[table])
    return [column.name for column in there.tables[table].columns]
