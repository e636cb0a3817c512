"""Following a job by server-sent events, and the one look for all who do."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from service.api import job_watcher, sse
from service.api.app import create_app
from service.api.job_watcher import JobWatcher
from service.backends.memory_tracking import FakeResults
from service.errors import NotFound, Unavailable
from service.jobs.job import Job, State
from service.queue.store import Store
from service.settings import Settings
from tests.service.examples import make_spec
from tests.service.serving import Stage, sent_events
from training.protocol import Progress


@pytest.fixture
def api(stage: Stage, sqlite_store: Store, monkeypatch: pytest.MonkeyPatch) -> Iterator[httpx.Client]:
    monkeypatch.setattr(sse, "POLL_S", 0.02)
    monkeypatch.setattr(sse, "HEARTBEAT_S", 0.1)
    with stage.showing(create_app(Settings(), sqlite_store, FakeResults())) as client:
        yield client


@pytest.fixture
def job(sqlite_store: Store) -> Job:
    return sqlite_store.create_job(make_spec())[0]


def launch(store: Store, job: Job) -> None:
    assert store.move(store.get(job.id), State.STARTING, attempt=1, workers=1)
    assert store.move(store.get(job.id), State.RUNNING)


def report(store: Store, job: Job) -> None:
    progress = Progress(step=3, total_steps=9, epoch=0, eta_seconds=None, metrics={"train_loss": 0.5})
    store.write_progress([(store.get(job.id), progress)])


def finish(store: Store, job: Job) -> None:
    assert store.move(store.get(job.id), State.SUCCEEDED)


# Events


def test_events_are_the_job_now_and_whenever_it_changes(
    api: httpx.Client, job: Job, sqlite_store: Store
) -> None:
    found: list[tuple[str, object]] = []
    changes: list[Callable[[Store, Job], None]] = [launch, report, finish]
    with api.stream("GET", f"/v1/jobs/{job.id}/events") as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        for line in response.iter_lines():
            name, _, value = line.partition(": ")
            if name == "event":
                kind = value
            elif name == "data" and kind == "job":
                document = json.loads(value)
                found.append((document["state"], (document["progress"] or {}).get("step")))
                if changes and document["state"] != "starting":
                    changes.pop(0)(sqlite_store, job)
            elif name == "data":
                found.append((kind, value))

    seen = [item for item in found if item != ("starting", None)]  # may be too short to be seen
    assert seen == [
        ("queued", None),
        ("running", None),
        ("running", 3),
        ("succeeded", 3),
        ("end", "succeeded"),
    ]


def test_events_say_what_the_job_document_says(api: httpx.Client, job: Job, sqlite_store: Store) -> None:
    for change in (launch, report, finish):
        change(sqlite_store, job)

    (name, _, data), end = sent_events(api.get(f"/v1/jobs/{job.id}/events").text)

    assert name == "job"
    assert json.loads(data) == api.get(f"/v1/jobs/{job.id}").json()
    assert end == ("end", "", "succeeded")


def test_events_taken_up_again_do_not_repeat_the_last(
    api: httpx.Client, job: Job, sqlite_store: Store
) -> None:
    launch(sqlite_store, job)
    finish(sqlite_store, job)
    (_, version, _), _ = sent_events(api.get(f"/v1/jobs/{job.id}/events").text)

    again = api.get(f"/v1/jobs/{job.id}/events", headers={"Last-Event-ID": version})

    assert [name for name, _, _ in sent_events(again.text)] == ["end"]


def test_events_of_no_job_are_not_found(api: httpx.Client) -> None:
    for job_id in ("nonsense", "j" + "0" * 20, "%00"):
        response = api.get(f"/v1/jobs/{job_id}/events")

        assert response.status_code == 404
        assert response.headers["content-type"] == "application/problem+json"


def test_many_followers_do_not_hold_up_the_others(api: httpx.Client, job: Job, sqlite_store: Store) -> None:
    count = 60
    told = threading.Semaphore(0)

    def follow(_: int) -> str:
        address = f"{api.base_url}/v1/jobs/{job.id}/events"
        with httpx.stream("GET", address, headers=api.headers, timeout=60, trust_env=False) as response:
            lines = response.iter_lines()
            assert next(lines) == "event: job"
            told.release()
            return list(lines)[-2]

    with ThreadPoolExecutor(count) as pool:
        followers = pool.map(follow, range(count))
        for _ in range(count):
            assert told.acquire(timeout=60)
        for path in (f"/v1/jobs/{job.id}", "/v1/jobs", "/v1/queue"):
            assert api.get(path).status_code == 200
        sqlite_store.request_cancel(job.id)

        assert set(followers) == {"data: cancelled"}


# The look that followers share


class Watched(Store):
    """A store that counts the looks at followed jobs, and fails or waits on demand."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.looks: list[set[str]] = []
        self.away = False
        self.slow: threading.Event | None = None
        self.waits = threading.Event()

    def several(self, job_ids: Collection[str]) -> list[Job]:
        self.looks.append(set(job_ids))
        self._answer()
        return super().several(job_ids)

    def get(self, job_id: str) -> Job:
        job = super().get(job_id)
        self._answer()
        return job

    def _answer(self) -> None:
        if self.away:
            raise Unavailable("the database", "the test made it so")
        if self.slow is not None:
            slow, self.slow = self.slow, None
            self.waits.set()
            assert slow.wait(60)


@pytest.fixture
def watched(sqlite_store: Store) -> Iterator[Watched]:
    store = Watched(str(sqlite_store._engine.url))
    yield store
    store.close()


@pytest.fixture
def eager(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> JobWatcher:
    """One that looks whenever it is asked."""
    monkeypatch.setattr(sse, "POLL_S", 0.0)
    return JobWatcher(watched, lambda job: f"{job.name} is {job.state}")


def test_within_an_interval_nobody_asks_the_database_again(
    eager: JobWatcher, watched: Watched, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = eager.snapshot(job.id)
    looks = len(watched.looks)
    monkeypatch.setattr(sse, "POLL_S", 3600.0)

    launch(watched, job)

    assert [eager.snapshot(job.id) for _ in range(100)] == [first] * 100
    assert len(watched.looks) == looks


def test_one_look_is_for_all_jobs_that_are_followed(
    eager: JobWatcher, watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = [watched.create_job(make_spec())[0] for _ in range(3)]
    for job in jobs:
        eager.snapshot(job.id)
    watched.looks.clear()

    eager.snapshot(jobs[0].id)

    assert watched.looks == [{job.id for job in jobs}]
    monkeypatch.setattr(job_watcher, "_FOLLOWED_SECONDS", -1.0)
    eager.snapshot(jobs[0].id)
    assert watched.looks[1:] == [set()]
    assert eager.snapshot(jobs[1].id).job == jobs[1]


def test_a_document_is_made_once_however_often_it_is_looked_at(
    eager: JobWatcher, watched: Watched, job: Job
) -> None:
    first, second = eager.snapshot(job.id), eager.snapshot(job.id)
    assert first.document is second.document

    launch(watched, job)

    third = eager.snapshot(job.id)
    assert (third.document, third.job.state) == (f"{job.name} is running", State.RUNNING)
    assert third.version != first.version


def test_while_one_follower_waits_for_the_database_the_others_do_not(
    eager: JobWatcher, watched: Watched, job: Job
) -> None:
    first = eager.snapshot(job.id)
    go_on = watched.slow = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(eager.snapshot, job.id)
        assert watched.waits.wait(60)

        assert eager.snapshot(job.id).document == first.document

        go_on.set()
        assert waiting.result(60).document == first.document


def test_a_database_that_is_away_is_told_to_all_followers_until_it_is_back(
    eager: JobWatcher, watched: Watched, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    eager.snapshot(job.id)
    watched.away = True
    for interval in (0.0, 3600.0):
        monkeypatch.setattr(sse, "POLL_S", interval)
        with pytest.raises(Unavailable):
            eager.snapshot(job.id)

    watched.away = False
    monkeypatch.setattr(sse, "POLL_S", 0.0)

    assert eager.snapshot(job.id).job == job


def test_an_unknown_job_is_not_found_and_not_looked_for(
    eager: JobWatcher, watched: Watched, job: Job
) -> None:
    for job_id in ("j" + "0" * 20, "\0"):
        with pytest.raises(NotFound):
            eager.snapshot(job_id)

    eager.snapshot(job.id)

    assert watched.looks[-1] == {job.id}


def test_an_old_look_that_ends_late_does_not_hide_a_new_one(
    eager: JobWatcher, watched: Watched, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sse, "POLL_S", 3600.0)
    eager.snapshot(watched.create_job(make_spec())[0].id)  # its look is the last for long
    go_on = watched.slow = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        late = pool.submit(eager.snapshot, job.id)
        assert watched.waits.wait(60)
        launch(watched, job)
        assert eager.snapshot(job.id).job.state is State.RUNNING

        go_on.set()
        late.result(60)

    assert eager.snapshot(job.id).job.state is State.RUNNING
