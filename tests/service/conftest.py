"""Fixtures of the service's tests: stores over both databases, and the service behind HTTP."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Iterator
from functools import wraps
from pathlib import Path
from typing import Any

import pytest

from service.client import Client
from service.queue import database, lease
from service.queue.store import Store
from service.queue.tables import metadata
from service.settings import Settings, names_of
from testing.postgres import Postgres
from tests.service.live_api import FaultyApp, Later, LiveServer, Service, live_service, timers
from tests.service.serving import Stage, running_stage

# A scheduler that a test plays is not heard of while the machine is busy with something else.
lease.SILENCE_SECONDS = 3600.0
# Nor does it lose its transactions meanwhile.
setattr(database, "_IDLE_TRANSACTION_MS", 120_000)  # noqa: B010
# Nor is a service of the developer's own: `Settings()` reads its variables.
for _field in Settings.model_fields:
    for _name in names_of(_field):
        os.environ.pop(_name, None)


_set_up_sqlite = database._set_up_sqlite


@wraps(_set_up_sqlite)
def _set_up_sqlite_without_waiting_for_the_disk(connection: Any, record: object) -> None:
    _set_up_sqlite(connection, record)
    connection.execute("PRAGMA synchronous = OFF")  # processes are killed here, but no machine loses power


setattr(database, "_set_up_sqlite", _set_up_sqlite_without_waiting_for_the_disk)  # noqa: B010

POSTGRESQL = pytest.param("postgresql", marks=pytest.mark.full)

_names = (f"test_{number}" for number in itertools.count())


@pytest.fixture(scope="session")
def migrated_postgres(postgres: Postgres) -> Postgres:
    """It has a database `migrated`, with tables."""
    _migrate(postgres.create("migrated"))
    return postgres


@pytest.fixture(scope="session")
def migrated_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sqlite") / "migrated.db"
    _migrate(f"sqlite:///{path}")
    return path


@pytest.fixture(scope="session")
def stage() -> Iterator[Stage]:
    """A running HTTP server, to show an application on."""
    with running_stage() as stage:
        yield stage


@pytest.fixture(scope="session")
def live_server() -> Iterator[LiveServer[FaultyApp]]:
    """One server for all tests: starting and stopping it takes longer than most of them."""
    with LiveServer(FaultyApp()) as server:
        yield server


@pytest.fixture
def service(live_server: LiveServer[FaultyApp], tmp_path: Path) -> Iterator[Service]:
    with live_service(live_server, tmp_path) as service:
        yield service


@pytest.fixture
def client(service: Service) -> Iterator[Client]:
    with Client(service.url, retry_seconds=10) as client:
        yield client


@pytest.fixture
def later() -> Iterator[Later]:
    with timers() as later:
        yield later


@pytest.fixture
def postgres_url(migrated_postgres: Postgres) -> str:
    """A database with its tables and nothing in them. It is one and the same: making one takes longer."""
    migrated_postgres.disconnect("migrated")  # whoever a test has left behind would hold its locks
    with migrated_postgres.connect("migrated") as connection:
        connection.execute(f"TRUNCATE {', '.join(metadata.tables)} RESTART IDENTITY CASCADE".encode())
    return migrated_postgres.url("migrated")


@pytest.fixture(params=["sqlite", POSTGRESQL])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database with its tables and nothing in them, of either kind."""
    if request.param == "postgresql":
        url: str = request.getfixturevalue("postgres_url")
        return url
    return _copied(request.getfixturevalue("migrated_sqlite"), tmp_path)


@pytest.fixture(params=["sqlite", POSTGRESQL])
def empty_database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A new database without tables, of either kind."""
    if request.param == "postgresql":
        server: Postgres = request.getfixturevalue("postgres")
        return server.create(next(_names))
    return f"sqlite:///{tmp_path}/new.db"


@pytest.fixture
def store(database_url: str) -> Iterator[Store]:
    """A store over SQLite, and the same test again over PostgreSQL."""
    store = Store(database_url)
    yield store
    store.close()


@pytest.fixture
def sqlite_store(migrated_sqlite: Path, tmp_path: Path) -> Iterator[Store]:
    """For tests to which the database does not matter."""
    store = Store(_copied(migrated_sqlite, tmp_path))
    yield store
    store.close()


def _copied(migrated: Path, directory: Path) -> str:
    """Migrating anew for each test would take most of its time."""
    return f"sqlite:///{shutil.copy(migrated, directory / 'jobs.db')}"


def _migrate(url: str) -> None:
    store = Store(url)
    store.migrate()
    store.close()
