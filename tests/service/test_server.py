"""`syncbn serve` in its three roles, over a real queue, where neither Ray nor MLflow is there."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from service.client.local_token import token_file
from service.identity import Identity
from service.ports import free_port
from service.queue.store import Store
from service.settings import Settings
from tests.service.examples import make_spec

SYNCBN = str(Path(sys.executable).with_name("syncbn"))
Serve = Callable[[str], subprocess.Popen[bytes]]


def until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.02)


class Place:
    """Where the service is: a port, and variables that name a queue and a Ray and an MLflow that are away."""

    def __init__(self, store: Store, folder: Path) -> None:
        self.port, self.log = free_port(), folder / "log"
        self.url = f"http://127.0.0.1:{self.port}"
        self.settings = Settings(
            database_url=store._engine.url.render_as_string(),
            ray_address=f"127.0.0.1:{free_port()}",
            mlflow_url=f"http://127.0.0.1:{free_port()}",
            storage=str(folder / "runs"),
        )

    def answers(self) -> bool:
        try:
            return httpx.get(f"{self.url}/healthz", timeout=5).is_success
        except httpx.HTTPError:
            return False

    @property
    def headers(self) -> dict[str, str]:
        """With the token that the API has left for its user."""
        return {"Authorization": f"Bearer {token_file(self.port).read_text()}"}

    def get(self, path: str) -> httpx.Response:
        return httpx.get(f"{self.url}{path}", headers=self.headers, timeout=60)


@pytest.fixture
def place(sqlite_store: Store, tmp_path: Path) -> Place:
    return Place(sqlite_store, tmp_path)


@pytest.fixture
def serve(place: Place) -> Iterator[Serve]:
    begun: list[subprocess.Popen[bytes]] = []

    def start(role: str) -> subprocess.Popen[bytes]:
        command = [SYNCBN, "serve", "--role", role, "--port", str(place.port)]
        environment = os.environ | place.settings.variables()
        with place.log.open("ab") as log:
            begun.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
        return begun[-1]

    yield start
    for process in begun:
        below = psutil.Process(process.pid).children() if process.poll() is None else []
        process.kill()
        process.wait()
        psutil.wait_procs(below, timeout=60)


def holder(store: Store) -> psutil.Process | None:
    """The process of the scheduler that is at work."""
    row = store.scheduler()
    identity = Identity.parse(row.holder) if row else None
    return identity.process() if identity else None


def libraries(process: subprocess.Popen[bytes]) -> str:
    return Path(f"/proc/{process.pid}/maps").read_text()


def test_the_api_alone_has_no_scheduler_and_no_ray(place: Place, serve: Serve, sqlite_store: Store) -> None:
    process = serve("api")
    until(place.answers)

    refused = place.get("/v1/cluster")

    assert (refused.status_code, "no scheduler runs" in refused.json()["detail"]) == (503, True)
    assert place.get("/v1/queue").json()["items"] == []
    assert sqlite_store.scheduler() is None
    assert not psutil.Process(process.pid).children()
    if sys.platform == "linux":
        assert "_raylet" not in libraries(process)
        assert "libtorch" not in libraries(process)
    process.terminate()
    assert process.wait(60) == 0


def test_a_follower_s_stream_ends_with_the_server_and_without_a_traceback(
    place: Place, serve: Serve, sqlite_store: Store
) -> None:
    job, _ = sqlite_store.create_job(make_spec())
    process = serve("api")
    until(place.answers)

    events, headers = f"{place.url}/v1/jobs/{job.id}/events", place.headers
    with httpx.stream("GET", events, headers=headers, timeout=60) as response:
        chunks = response.iter_text()
        assert job.id in next(chunks)
        process.terminate()
        assert "".join(chunks) == ""

    assert process.wait(60) == 0
    assert "Traceback" not in place.log.read_text()


def test_the_scheduler_alone_has_no_port(place: Place, serve: Serve, sqlite_store: Store) -> None:
    process = serve("scheduler")

    until(lambda: (found := holder(sqlite_store)) is not None and found.pid == process.pid)

    assert not place.answers()
    process.terminate()
    assert process.wait(60) == 0
    assert (row := sqlite_store.scheduler()) is not None
    assert row.vacant


def test_a_scheduler_that_dies_beside_the_api_is_followed_by_another(
    place: Place, serve: Serve, sqlite_store: Store
) -> None:
    process = serve("both")
    until(lambda: holder(sqlite_store) is not None)
    first = holder(sqlite_store)
    assert first is not None
    until(place.answers)

    first.kill()

    until(lambda: (found := holder(sqlite_store)) is not None and found != first)
    assert place.answers()
    second = holder(sqlite_store)
    assert second is not None
    process.terminate()
    assert process.wait(60) == 0
    assert not second.is_running()
    assert "the scheduler exited unexpectedly (exit code -9)" in place.log.read_text()


def test_the_scheduler_beside_an_api_that_is_killed_ends_too(serve: Serve, sqlite_store: Store) -> None:
    process = serve("both")
    until(lambda: holder(sqlite_store) is not None)
    scheduler = holder(sqlite_store)

    process.kill()
    process.wait()

    assert scheduler is not None
    scheduler.wait(120)
    until(lambda: (row := sqlite_store.scheduler()) is not None and row.vacant)
