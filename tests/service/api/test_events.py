"""Following a job by server-sent events, and the one look for all who do."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from service.api import events, job_watcher, sse
from service.api.app import create_app
from service.api.job_watcher import JobWatcher
from service.backends.memory_tracking import FakeResults
from service.errors import NotFound, Unavailable
from service.jobs.job import Job, State
from service.queue.queue_rows import JobLook
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


def finish_waiting(store: Store, job: Job) -> None:
    store.request_cancel(job.id)


# Events of a job


def test_events_are_the_job_now_and_whenever_it_changes(
    api: httpx.Client, job: Job, sqlite_store: Store
) -> None:
    found: list[tuple[str, object]] = []
    changes: list[Callable[[Store, Job], None]] = [launch, report, finish]
    changed = []
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
            elif name == "data" and kind == "change":
                changed.append(json.loads(value)["state"])
            elif name == "data":
                found.append((kind, value))

    assert changed == ["queued", "starting", "running", "succeeded"]
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

    *_, (name, _, data), end = sent_events(api.get(f"/v1/jobs/{job.id}/events").text)

    assert name == "job"
    assert json.loads(data) == api.get(f"/v1/jobs/{job.id}").json()
    assert end == ("end", "", "succeeded")


def follow(api: httpx.Client, job: Job, last_id: str = "") -> list[tuple[str, str, str]]:
    headers = {"Last-Event-ID": last_id} if last_id else {}
    return sent_events(api.get(f"/v1/jobs/{job.id}/events", headers=headers).text)


def test_events_taken_up_anywhere_miss_and_repeat_nothing(
    api: httpx.Client, job: Job, sqlite_store: Store
) -> None:
    launch(sqlite_store, job)
    finish(sqlite_store, job)
    whole = follow(api, job)

    assert [name for name, _, _ in whole] == ["change"] * 4 + ["job", "end"]
    for index, (_, id, _) in enumerate(whole[:-1]):
        assert follow(api, job, id) == whole[index + 1 :]


def test_a_client_that_took_its_position_from_an_older_server_goes_on(
    api: httpx.Client, job: Job, sqlite_store: Store
) -> None:
    finish_waiting(sqlite_store, job)
    version = follow(api, job)[-2][1].partition("-")[2]

    assert [name for name, _, _ in follow(api, job, version)] == ["change"] * 2 + ["end"]
    assert [name for name, _, _ in follow(api, job, "0" * 16)] == ["change"] * 2 + ["job", "end"]


@pytest.mark.parametrize("last_id", ["x", "1-x", "-1", "9" * 20, "7", "7-0123456789abcdef"])
def test_a_position_that_was_not_given_out_is_refused(api: httpx.Client, job: Job, last_id: str) -> None:
    response = api.get(f"/v1/jobs/{job.id}/events", headers={"Last-Event-ID": last_id})

    assert response.status_code == 422
    assert response.json()["errors"][0]["key"] == "Last-Event-ID"


def test_more_events_than_fit_into_one_portion_all_come(
    api: httpx.Client, job: Job, sqlite_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "_LIMIT", 3)
    monkeypatch.setattr(events, "FULL", 600)
    monkeypatch.setattr(sse, "FULL", 600)
    for _ in range(4):
        sqlite_store.request_pause(job.id)
        sqlite_store.request_resume(job.id)
    finish_waiting(sqlite_store, job)

    assert [name for name, _, _ in follow(api, job)] == ["change"] * 10 + ["job", "end"]


# All jobs


def test_events_of_all_jobs_begin_now_and_go_on_after_any_of_them(
    api: httpx.Client, job: Job, sqlite_store: Store
) -> None:
    other = sqlite_store.create_job(make_spec(name="other", labels={"team": "x"}))[0]
    with api.stream("GET", "/v1/events") as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = response.iter_lines()
        assert next(lines) == "id: 2"
        launch(sqlite_store, other)
        assert [document["state"] for document in changes_in(lines, 2)] == ["starting", "running"]
    launch(sqlite_store, job)

    with api.stream("GET", "/v1/events", headers={"Last-Event-ID": "3"}) as response:
        found = changes_in(response.iter_lines(), 3)
    assert [(each["job"], each["state"]) for each in found] == [
        (other.id, "running"),
        (job.id, "starting"),
        (job.id, "running"),
    ]
    with api.stream("GET", "/v1/events?after=0&label=team:x") as response:
        found = changes_in(response.iter_lines(), 3)
    assert {(each["job"], each["name"]) for each in found} == {(other.id, "other")}
    assert api.get("/v1/events", headers={"Last-Event-ID": "x"}).status_code == 422


def changes_in(lines: Iterator[str], count: int) -> list[dict[str, object]]:
    """The next changes in a stream."""
    data = (line.removeprefix("data: ") for line in lines if line.startswith("data: "))
    return [json.loads(next(data)) for _ in range(count)]


def test_a_stopping_server_ends_its_streams(
    stage: Stage, sqlite_store: Store, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sse, "POLL_S", 0.02)
    stopping = threading.Event()
    app = create_app(Settings(), sqlite_store, FakeResults(), stopping=stopping)
    with stage.showing(app) as api, api.stream("GET", f"/v1/jobs/{job.id}/events") as response:
        lines = response.iter_lines()
        assert next(lines) == "event: change"
        stopping.set()
        assert "event: end" not in list(lines)  # the answer ends, the job does not


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
            assert next(lines) == "event: change"
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

    def looks_at(self, job_ids: Collection[str]) -> dict[str, JobLook]:
        self.looks.append(set(job_ids))
        self._answer()
        return super().looks_at(job_ids)

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


def test_several_snapshots_come_in_order_without_deleted_jobs(eager: JobWatcher, watched: Watched) -> None:
    first, second, third = (watched.create_job(make_spec())[0] for _ in range(3))
    assert [each.job for each in eager.snapshots([third.id, "j" + "0" * 20, first.id])] == [third, first]
    launch(watched, second)
    finish(watched, second)
    wanted = [first.id, second.id, third.id]
    assert [each.job.state for each in eager.snapshots(wanted)] == ["queued", "succeeded", "queued"]

    watched.delete_job(second.id)

    assert [each.job for each in eager.snapshots(wanted)] == [first, third]


def test_what_is_made_of_a_job_is_made_again_after_each_step_and_each_change(
    eager: JobWatcher, watched: Watched, job: Job
) -> None:
    made: list[tuple[State, int | None]] = []

    def make() -> int:
        now = eager.snapshot(job.id).job
        made.append((now.state, now.progress.step if now.progress else None))
        return len(made)

    def look() -> int:
        return eager.snapshot(job.id).once("test", make)

    assert [look(), look()] == [1, 1]
    launch(watched, job)
    assert [look(), look()] == [2, 2]
    report(watched, job)
    assert [look(), look()] == [3, 3]
    watched.note(watched.get(job.id), "restarting")
    assert look() == 4

    assert made == [("queued", None), ("running", None), ("running", 3), ("running", 3)]
    assert eager.snapshot(job.id).job == watched.get(job.id)
