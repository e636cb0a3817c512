"""`syncbn doctor`, the real command, names each fault of real parts, also where several are ill at once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import text

from service.ports import free_port
from service.queue.database import make_engine
from service.queue.store import Store
from testing import clocks
from testing.clocks import Clock
from testing.postgres import Postgres
from tests.e2e.small_ray import SmallRay
from tests.e2e.stack import ENVIRONMENT, SYNCBN
from tests.mlflow_server import MlflowServer
from tests.service.live_api import find_ray
from tests.small_disk import fill, frozen_disk, small_disk

AHEAD = 40.0
"""Seconds, of the clock of the second machine."""


@dataclass(frozen=True)
class Said:
    """What the command says of the service that its variables name."""

    code: int
    findings: list[dict[str, str]]

    def of(self, about: str, level: str = "fault") -> list[str]:
        """The messages of this level."""
        return [each["message"] for each in self.findings if (each["about"], each["level"]) == (about, level)]

    def only(self, about: str, level: str = "fault") -> str:
        (message,) = self.of(about, level)
        return message


def doctor(seconds: int = 60, /, **variables: str) -> Said:
    """Every part that is not named is down."""
    nowhere = f"127.0.0.1:{free_port()}"
    named = {"SYNCBN_MLFLOW_URL": f"http://{nowhere}", "SYNCBN_RAY_ADDRESS": nowhere} | variables
    command = [SYNCBN, "--url", f"http://{nowhere}", "doctor", "--json", "--timeout", str(seconds)]
    done = subprocess.run(command, env=ENVIRONMENT | named, capture_output=True, text=True, timeout=240)
    assert done.stdout, done.stderr
    answer = json.loads(done.stdout)
    assert answer["healthy"] is (done.returncode == 0)
    return Said(done.returncode, answer["findings"])


def once(is_so: Callable[[Said], bool], variables: dict[str, str]) -> Said:
    """Returns the first answer that is so. The command is asked once a second: each time loads Ray."""
    deadline = time.monotonic() + 240
    while not is_so(said := doctor(**variables)):
        assert time.monotonic() < deadline, said
        time.sleep(1)
    return said


@pytest.fixture(scope="module")
def migrated(postgres: Postgres) -> str:
    url = postgres.create("doctor")
    store = Store(url)
    store.migrate()
    store.close()
    return url


@pytest.fixture
def sqlite(tmp_path: Path) -> str:
    url = f"sqlite:///{tmp_path / 'jobs.db'}"
    store = Store(url)
    store.migrate()
    find_ray(store)
    store.close()
    return url


def test_everything_down_and_a_disk_nearly_full(tmp_path: Path) -> None:
    database = f"postgresql://nobody@127.0.0.1:{free_port()}/none"
    with small_disk(tmp_path / "disk", mib=64) as storage:
        fill(storage, share=0.97)
        nearly = doctor(SYNCBN_DATABASE_URL=database, SYNCBN_STORAGE=str(storage))
        (storage / "filling").unlink()
        fill(storage, share=1.0)
        full = doctor(SYNCBN_DATABASE_URL=database, SYNCBN_STORAGE=str(storage))

    assert nearly.code == full.code == 1
    for about in ("database", "Ray", "MLflow"):
        assert nearly.only(about).startswith("it is down"), about
    assert str(storage) in nearly.only("disk", "warning")
    assert str(storage) in full.only("disk")
    assert nearly.of("storage", "ok")
    assert "cannot be written" in full.only("storage")


def test_everything_frozen(
    migrated: str, postgres: Postgres, mlflow_server: MlflowServer, tmp_path: Path
) -> None:
    postgres.freeze()
    mlflow_server.signal(signal.SIGSTOP)
    try:
        with frozen_disk(tmp_path / "disk") as storage:
            said = doctor(
                20,
                SYNCBN_DATABASE_URL=migrated,
                SYNCBN_MLFLOW_URL=mlflow_server.url,
                SYNCBN_STORAGE=str(storage),
            )
    finally:
        mlflow_server.signal(signal.SIGCONT)
        postgres.thaw()

    assert said.only("database").startswith("it is frozen")
    assert "has not answered" in said.only("MLflow")
    assert said.only("storage") == said.only("disk") == "no answer in 20 s"


def test_everything_refuses(
    migrated: str, postgres: Postgres, mlflow_server: MlflowServer, ray: SmallRay
) -> None:
    set_read_only(postgres, "on")
    try:
        said = doctor(
            SYNCBN_DATABASE_URL=migrated,
            SYNCBN_MLFLOW_URL=mlflow_server.url.replace("127.0.0.1", "127.1"),  # the same address for libc
            SYNCBN_RAY_ADDRESS=ray.address,
            SYNCBN_RAY_TOKEN="0" * 64,
        )
    finally:
        set_read_only(postgres, "off")

    assert said.only("database").startswith("it is read-only")
    assert said.only("MLflow").startswith("it refuses the host 127.1:")
    assert said.only("Ray").endswith("refuses the token")


def set_read_only(postgres: Postgres, value: str) -> None:
    statement = "ALTER DATABASE doctor SET default_transaction_read_only = {}"
    with postgres.connect("postgres") as admin:
        admin.execute(psycopg.sql.SQL(statement).format(psycopg.sql.Literal(value)))


def test_parts_of_other_versions(sqlite: str, tmp_path: Path, mlflow_server: MlflowServer) -> None:
    """What is installed here is newer than the scheduler and the tables, and older than MLflow."""
    engine = make_engine(sqlite)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '0013'"))
    engine.dispose()
    with_old = installed(tmp_path, syncbn="999.0", mlflow="2.9.1")

    said = doctor(SYNCBN_DATABASE_URL=sqlite, SYNCBN_MLFLOW_URL=mlflow_server.url, PYTHONPATH=with_old)

    assert said.only("database").startswith("its tables are old: revision 0013, this version needs 00")
    assert said.only("versions").startswith("the scheduler runs syncbn ")
    assert said.only("versions").endswith("here is 999.0")
    assert said.only("versions", "warning").endswith("the client of the jobs 2.9.1")


def installed(folder: Path, **versions: str) -> str:
    """Returns a search path on which these versions of packages are installed before the real ones."""
    for name, version in versions.items():
        about = folder / f"{name}-{version}.dist-info"
        about.mkdir()
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    return os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])


@pytest.fixture(scope="module")
def clock(tmp_path_factory: pytest.TempPathFactory) -> Clock:
    if clocks.library() is None:
        pytest.skip("needs a C compiler: neither cc nor gcc is on PATH")
    clock = Clock(tmp_path_factory.mktemp("clock") / "difference")
    clock.create()
    return clock


@pytest.fixture(scope="module")
def ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SmallRay]:
    ray = SmallRay(tmp_path_factory.mktemp("ray"))
    try:
        ray.start(cpus=1)
        yield ray
    finally:
        ray.end()


def test_hosts_whose_clock_is_off_whose_agent_is_stopped_or_gone(
    tmp_path: Path, ray: SmallRay, clock: Clock
) -> None:
    ray.add_node(cpus=1, variables=clock.environment)
    service = {
        "SYNCBN_DATABASE_URL": f"sqlite:///{tmp_path / 'new.db'}",
        "SYNCBN_STORAGE": str(tmp_path / "runs"),
        "SYNCBN_RAY_ADDRESS": ray.address,
        "SYNCBN_RAY_TOKEN": ray.token,
    }

    missing = once(lambda said: len(said.of("agents")) == 2, service)
    with scheduler(tmp_path, service):
        well = once(lambda said: len(said.of("agents", "ok")) == 2, service)
        clock.set(AHEAD)
        ahead = doctor(**service)
        clock.set(0.0)
        first, _ = ray.agents()
        first.send_signal(signal.SIGSTOP)
        try:
            silent = doctor(**service)
        finally:
            first.send_signal(signal.SIGCONT)
        ray.kill_last_node()
        once(lambda said: bool(said.of("Ray", "warning")), service)  # names the machine that left

    assert all(message.startswith("there is no host agent on") for message in missing.of("agents"))
    assert well.of("scheduler", "ok")
    assert not well.of("clock", "warning")
    assert f"is {AHEAD:.0f} s ahead of that of this machine" in ahead.only("clock", "warning")
    assert "has not answered" in silent.only("agents")


@contextmanager
def scheduler(folder: Path, variables: dict[str, str]) -> Iterator[None]:
    """The real one, in a process of its own. It starts an agent on each machine."""
    command = [SYNCBN, "serve", "--role", "scheduler"]
    with (folder / "scheduler.log").open("ab") as log:
        process = subprocess.Popen(
            command, env=ENVIRONMENT | variables, cwd=folder, stdout=log, stderr=subprocess.STDOUT
        )
    try:
        yield
    finally:
        process.terminate()
        process.wait(60)
