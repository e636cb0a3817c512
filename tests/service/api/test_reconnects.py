"""Streams taken up again at any moment, across kills of the server: each event comes once."""

from __future__ import annotations

import hashlib
import json
import random
import signal
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from service.client.sse import Event, events
from service.jobs.job import Job, State
from service.queue.store import Store
from tests.service.api.server_process import ServerProcess
from tests.service.examples import make_spec
from training.protocol import log_file

pytestmark = pytest.mark.full

RECONNECTS, KILLS = 25, 2


class Reader:
    """Reads a stream; leaves it after a random number of events, `RECONNECTS` times, then reads on."""

    def __init__(self, server: ServerProcess, path: str, seed: int) -> None:
        self.server, self.path = server, path
        self.random = random.Random(seed)
        self.connections, self.last_id = 0, ""

    def read(self, is_last: Callable[[Event], bool]) -> Iterator[Event]:
        while True:
            self.connections += 1
            try:
                for event in self._some():
                    self.last_id = event.id or self.last_id
                    yield event
                    if is_last(event):
                        return
            except httpx.TransportError:
                time.sleep(0.02)  # killed

    def _some(self) -> Iterator[Event]:
        headers = self.server.headers | ({"Last-Event-ID": self.last_id} if self.last_id else {})
        enough = self.connections > RECONNECTS
        most = 10**9 if enough else self.random.choice([0, 1, 2, 5, 50])
        with httpx.stream(
            "GET",
            f"{self.server.url}{self.path}",
            headers=headers,
            timeout=60,
            trust_env=False,
            verify=False,  # no certificates to load for each connection
        ) as response:
            assert response.status_code == 200
            for number, event in enumerate(events(response.iter_text())):
                if number >= most:
                    return
                yield event


class Killer:
    """Kills the server and starts it again, some times, in a thread."""

    def __init__(self, server: ServerProcess, kills: int, pause: float) -> None:
        self._thread = threading.Thread(target=self._run, args=(server, kills, pause))

    def _run(self, server: ServerProcess, kills: int, pause: float) -> None:
        for number in range(kills):
            time.sleep(pause)
            server.kill(signal.SIGTERM if number % 3 == 2 else signal.SIGKILL)
            server.start()

    def __enter__(self) -> Killer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.join()

    @property
    def at_work(self) -> bool:
        return self._thread.is_alive()


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    path = tmp_path / "runs"
    path.mkdir()
    return path


def test_a_log_is_received_whole_and_once(sqlite_store: Store, storage: Path) -> None:
    """Two ranks print in three attempts, the last of which ends once there were connections enough."""
    store = sqlite_store
    job = store.create_job(make_spec())[0]
    with ServerProcess(str(store._engine.url), storage) as server:
        reader = Reader(server, f"/v1/jobs/{job.id}/logs?follow=true", seed=1)
        with Killer(server, KILLS, pause=0.5) as killer:
            done = lambda: reader.connections >= RECONNECTS and not killer.at_work  # noqa: E731
            writer = threading.Thread(target=write_logs, args=(store, job, storage, done))
            writer.start()
            received: dict[tuple[int, int], str] = defaultdict(str)
            source = (0, 0)
            for event in reader.read(lambda event: event.name == "end"):
                if event.name == "source":
                    found = json.loads(event.data)
                    source = (found["attempt"], found["rank"])
                elif event.name == "log":
                    received[source] += event.data + "\n"
            writer.join()

    written = {
        (attempt, rank): log_file(storage / job.id, attempt, rank).read_text()
        for attempt in (1, 2, 3)
        for rank in (0, 1)
    }
    assert reader.connections >= RECONNECTS
    assert {key: sha256(text) for key, text in received.items()} == {
        key: sha256(text) for key, text in written.items()
    }


def write_logs(store: Store, job: Job, storage: Path, done: Callable[[], bool]) -> None:
    random_ = random.Random(2)
    for attempt in (1, 2, 3):
        now = store.get(job.id)
        assert store.move(now, State.STARTING, attempt=attempt, workers=2)
        assert store.move(store.get(job.id), State.RUNNING)
        for rank in (0, 1):
            log_file(storage / job.id, attempt, rank).parent.mkdir(parents=True, exist_ok=True)
        files = [log_file(storage / job.id, attempt, rank).open("a") for rank in (0, 1)]
        written = 0
        while written < 20 or (attempt == 3 and not done()):
            file = random_.choice(files)
            file.write(f"{written} {'ö' * random_.randrange(60)}\n" * 3)
            file.write(f"torn {written}")
            file.flush()
            time.sleep(0.02)
            file.write(" and whole\n")
            file.flush()
            written += 1
        for file in files:
            file.close()
        if attempt < 3:
            assert store.move(store.get(job.id), State.QUEUED, failures=attempt)
    assert store.move(store.get(job.id), State.SUCCEEDED)


def test_events_of_all_jobs_are_received_whole_and_once(
    store: Store, database_url: str, storage: Path
) -> None:
    """Jobs are changed by two threads at once until there were connections enough."""
    with ServerProcess(database_url, storage) as server:
        reader = Reader(server, "/v1/events?after=0", seed=3)
        with Killer(server, KILLS, pause=0.5) as killer:
            done = lambda: reader.connections >= RECONNECTS and not killer.at_work  # noqa: E731
            changers = [threading.Thread(target=change_jobs, args=(store, done)) for _ in range(2)]
            for changer in changers:
                changer.start()
            last = threading.Thread(target=end_after, args=(changers, store))
            last.start()
            received = [
                (event.id, json.loads(event.data))
                for event in reader.read(lambda event: '"name":"last"' in event.data)
                if event.name == "change"
            ]
            last.join()

    horizon = store.event_horizon().wait()
    written = store.events(after=0, up_to=horizon, limit=10**6)
    assert [int(id) for id, _ in received] == [event.id for event, _ in written]
    assert [(change["job"], change["state"]) for _, change in received] == [
        (event.job_id, event.state) for event, _ in written
    ]


def change_jobs(store: Store, done: Callable[[], bool]) -> None:
    while not done():
        job = store.create_job(make_spec())[0]
        store.request_pause(job.id)
        store.request_cancel(job.id)
        time.sleep(0.05)


def end_after(changers: list[threading.Thread], store: Store) -> None:
    for changer in changers:
        changer.join()
    store.create_job(make_spec(name="last"))
