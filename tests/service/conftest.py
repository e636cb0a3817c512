"""Fixtures of the service's tests: stores over both databases, and the service behind HTTP."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from benchmarks.postgres import NotInstalled, Postgres
from benchmarks.postgres import postgres as running_postgres
from service.client import Client
from service.queue import lease
from service.queue.store import Store
from service.settings import Settings, names_of
from tests.service.live_api import FaultyApp, Later, LiveServer, Service, live_service, timers
from tests.service.serving import Stage, running_stage

# A machine that is busy with something else is no reason to fail: neither for a slow example, nor for a
# scheduler that a test plays and that is not heard of while the machine stands still.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")
lease.SILENCE_SECONDS = 3600.0
# Nor is a service of the developer's own: `Settings()` reads its variables.
for _field in Settings.model_fields:
    for _name in names_of(_field):
        os.environ.pop(_name, None)

_names = (f"test_{number}" for number in itertools.count())


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A running PostgreSQL that has a migrated database `migrated`."""
    try:
        with running_postgres(fsync="off", max_connections="200") as server:
            _migrate(server.create("migrated"))
            yield server
    except NotInstalled as error:
        pytest.skip(str(error))


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


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A new database with its tables, of either kind."""
    if request.param == "postgresql":
        server: Postgres = request.getfixturevalue("postgres")
        return server.create(next(_names), template="migrated")
    return _copied(request.getfixturevalue("migrated_sqlite"), tmp_path)


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
