from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator

import httpx
import pytest

from service.api import sse
from service.api.app import create_app
from service.fakes import FakeCluster, FakeResults
from service.jobs import Job, State
from service.settings import Settings
from service.store import Store
from tests.service.examples import make_spec
from tests.service.serving import Stage

Event = tuple[str, str, str]


@pytest.fixture
def cluster() -> FakeCluster:
    return FakeCluster()


@pytest.fixture
def results() -> FakeResults:
    return FakeResults()


@pytest.fixture
def api(
    stage: Stage,
    sqlite_store: Store,
    cluster: FakeCluster,
    results: FakeResults,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[httpx.Client]:
    monkeypatch.setattr(sse, "POLL_S", 0.02)
    monkeypatch.setattr(sse, "HEARTBEAT_S", 0.1)
    with stage.showing(create_app(Settings(), sqlite_store, cluster, results)) as client:
        yield client


@pytest.fixture
def job(sqlite_store: Store) -> Job:
    return sqlite_store.create_job(make_spec())[0]


def launch(store: Store, job: Job) -> Job:
    job = store.get(job.id)
    assert store.move(job, State.STARTING, attempt=job.attempt + 1, workers=1)
    assert store.move(store.get(job.id), State.RUNNING)
    return store.get(job.id)


def lose(store: Store, job: Job) -> None:
    assert store.move(store.get(job.id), State.QUEUED, failures=1)


def finish(store: Store, job: Job, state: State = State.SUCCEEDED) -> None:
    assert store.move(store.get(job.id), state)


def archive(store: Store, results: FakeResults, job: Job, *logs: str) -> None:
    run = results.ensure_run(job_id=job.id, name=job.name, experiment="default")
    store.set_run(job.id, run.experiment_id, run.run_id)
    for number, log in enumerate(logs, start=1):
        results.upload(run, f"logs/attempt-{number}.log", log)


def follow(api: httpx.Client, job: Job, last_id: str = "") -> list[Event]:
    """All events until the end: name, id, data."""
    headers = {"Last-Event-ID": last_id} if last_id else {}
    return events(api.get(f"/v1/jobs/{job.id}/logs?follow=true", headers=headers).text)


def events(text: str) -> list[Event]:
    found = []
    for block in text.split("\n\n"):
        fields: dict[str, list[str]] = {}
        for line in block.split("\n"):
            name, _, value = line.partition(": ")
            fields.setdefault(name, []).append(value)
        if "event" in fields:
            found.append((fields["event"][0], fields.get("id", [""])[0], "\n".join(fields["data"])))
    return found


def later(*actions: Callable[[], object]) -> threading.Thread:
    """Does these things one after the other while the test reads."""

    def act() -> None:
        for action in actions:
            time.sleep(0.1)
            action()

    thread = threading.Thread(target=act)
    thread.start()
    return thread


# As text


def test_a_running_jobs_log_comes_from_the_cluster(
    api: httpx.Client, job: Job, sqlite_store: Store, cluster: FakeCluster
) -> None:
    launch(sqlite_store, job)
    cluster.print(f"{job.id}-1", "one\ntwo\nthree\n")

    response = api.get(f"/v1/jobs/{job.id}/logs")

    assert response.headers["content-type"] == "text/plain; charset=utf-8"
    assert response.text == "one\ntwo\nthree\n"
    for tail, text in ((0, ""), (1, "three\n"), (2, "two\nthree\n"), (9, "one\ntwo\nthree\n")):
        assert api.get(f"/v1/jobs/{job.id}/logs?tail={tail}").text == text
    assert api.get(f"/v1/jobs/{job.id}/logs?tail=-1").status_code == 422


def test_a_waiting_job_has_an_empty_log(api: httpx.Client, job: Job) -> None:
    assert api.get(f"/v1/jobs/{job.id}/logs").text == ""


def test_an_ended_jobs_log_is_its_archived_attempts_in_order(
    api: httpx.Client, job: Job, sqlite_store: Store, results: FakeResults
) -> None:
    launch(sqlite_store, job)
    lose(sqlite_store, job)
    launch(sqlite_store, job)
    finish(sqlite_store, job)
    archive(sqlite_store, results, job, "first\n", "second\n")

    assert api.get(f"/v1/jobs/{job.id}/logs").text == "first\n==> attempt 2 <==\nsecond\n"


def test_a_paused_jobs_log_is_the_archived_one(
    api: httpx.Client, job: Job, sqlite_store: Store, results: FakeResults
) -> None:
    launch(sqlite_store, job)
    sqlite_store.request_pause(job.id)
    assert sqlite_store.move(sqlite_store.get(job.id), State.PAUSED)
    archive(sqlite_store, results, job, "kept, though Ray has forgotten it\n")

    assert api.get(f"/v1/jobs/{job.id}/logs").text == "kept, though Ray has forgotten it\n"


def test_what_is_not_archived_yet_comes_from_the_cluster(
    api: httpx.Client, job: Job, sqlite_store: Store, cluster: FakeCluster, results: FakeResults
) -> None:
    launch(sqlite_store, job)
    finish(sqlite_store, job)
    cluster.print(f"{job.id}-1", "fresh\n")

    assert api.get(f"/v1/jobs/{job.id}/logs").text == "fresh\n"
    archive(sqlite_store, results, job)
    assert api.get(f"/v1/jobs/{job.id}/logs").text == "fresh\n"
    results.unreachable = True
    assert api.get(f"/v1/jobs/{job.id}/logs").text == "fresh\n"


def test_an_archived_log_is_not_replaced_by_what_ray_happens_to_remember(
    api: httpx.Client, job: Job, sqlite_store: Store, results: FakeResults
) -> None:
    launch(sqlite_store, job)
    finish(sqlite_store, job)
    archive(sqlite_store, results, job, "all of it\n")
    sqlite_store.mark_archived(job.id)
    results.unreachable = True

    assert api.get(f"/v1/jobs/{job.id}/logs").status_code == 503


# As events


def test_following_an_ended_job_gives_each_line_and_the_end(
    api: httpx.Client, job: Job, sqlite_store: Store, cluster: FakeCluster
) -> None:
    launch(sqlite_store, job)
    cluster.print(f"{job.id}-1", "one\n\ntwö\u2028\nbar 1\rbar 2\r\nunfinished")
    finish(sqlite_store, job, State.FAILED)

    assert follow(api, job) == [
        ("log", "1:4", "one"),
        ("log", "1:5", ""),
        ("log", "1:10", "twö\u2028"),
        ("log", "1:23", "bar 1\nbar 2"),
        ("log", "1:33", "unfinished"),
        ("end", "", "failed"),
    ]


def test_the_accept_header_asks_for_events_too(api: httpx.Client, job: Job, sqlite_store: Store) -> None:
    finish(sqlite_store, job, State.CANCELLED)

    response = api.get(f"/v1/jobs/{job.id}/logs", headers={"Accept": "text/event-stream"})

    assert response.headers["content-type"].startswith("text/event-stream")
    assert events(response.text) == [("end", "", "cancelled")]


def test_following_goes_from_waiting_through_a_lost_attempt_to_the_end(
    api: httpx.Client, job: Job, sqlite_store: Store, cluster: FakeCluster, results: FakeResults
) -> None:
    acting = later(
        lambda: launch(sqlite_store, job),
        lambda: cluster.print(f"{job.id}-1", "one\nhal"),
        lambda: cluster.print(f"{job.id}-1", "f\ntorn"),
        lambda: archive(sqlite_store, results, job, "one\nhalf\ntorn off"),
        lambda: lose(sqlite_store, job),
        lambda: cluster.lose(f"{job.id}-1"),
        lambda: launch(sqlite_store, job),
        lambda: cluster.print(f"{job.id}-2", "two\n"),
        lambda: finish(sqlite_store, job),
    )

    found = [(name, data) for name, _, data in follow(api, job)]

    acting.join()
    lines = ["one", "half", "torn off", "==> attempt 2 <==", "two"]
    assert found == [*(("log", line) for line in lines), ("end", "succeeded")]


def test_a_stream_taken_up_anywhere_misses_and_repeats_nothing(
    api: httpx.Client, job: Job, sqlite_store: Store, results: FakeResults
) -> None:
    launch(sqlite_store, job)
    lose(sqlite_store, job)
    launch(sqlite_store, job)
    finish(sqlite_store, job)
    archive(sqlite_store, results, job, "a\nb\nc", "d\ne\n")

    whole = follow(api, job)

    assert [data for _, _, data in whole] == ["a", "b", "c", "==> attempt 2 <==", "d", "e", "succeeded"]
    for index, (name, id, _) in enumerate(whole):
        if name == "log":
            assert follow(api, job, last_id=id) == whole[index + 1 :]


@pytest.mark.parametrize("last_id", ["x", "1", "0:1", "1:-1", "1:1:1", "9" * 30 + ":1"])
def test_a_place_that_was_not_given_out_is_refused(api: httpx.Client, job: Job, last_id: str) -> None:
    response = api.get(f"/v1/jobs/{job.id}/logs?follow=true", headers={"Last-Event-ID": last_id})

    assert response.status_code == 422
    assert response.json()["errors"][0]["key"] == "Last-Event-ID"


def test_a_silent_stream_says_that_it_lives_and_what_is_away(
    api: httpx.Client, job: Job, sqlite_store: Store, cluster: FakeCluster
) -> None:
    launch(sqlite_store, job)
    with api.stream("GET", f"/v1/jobs/{job.id}/logs?follow=true") as response:
        lines = response.iter_lines()
        assert next(lines) == ": still here"
        cluster.unreachable = True
        assert any(line.startswith(": Ray is not reachable") for line in lines)
        cluster.unreachable = False
        cluster.print(f"{job.id}-1", "back\n")
        assert "data: back" in lines
        finish(sqlite_store, job)
        assert "event: end" in lines


def test_many_followers_do_not_hold_up_the_others(api: httpx.Client, job: Job, sqlite_store: Store) -> None:
    def follow_it() -> None:
        with httpx.Client(base_url=api.base_url, timeout=30, trust_env=False) as client:
            client.get(f"/v1/jobs/{job.id}/logs?follow=true")

    followers = [threading.Thread(target=follow_it) for _ in range(60)]
    for follower in followers:
        follower.start()
    time.sleep(1)

    assert api.get(f"/v1/jobs/{job.id}", timeout=5).status_code == 200
    finish(sqlite_store, job, State.CANCELLED)
    for follower in followers:
        follower.join(timeout=20)
    assert not any(follower.is_alive() for follower in followers)


def test_events_are_the_job_now_and_whenever_it_changes(
    api: httpx.Client, job: Job, sqlite_store: Store
) -> None:
    found: list[tuple[str, str]] = []
    with api.stream("GET", f"/v1/jobs/{job.id}/events") as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = response.iter_lines()
        changes: list[Callable[[Store, Job], object]] = [launch, finish]
        for line in lines:
            name, _, value = line.partition(": ")
            if name == "event":
                kind = value
            elif name == "data":
                found.append((kind, value if kind == "end" else json.loads(value)["state"]))
                if changes:
                    changes.pop(0)(sqlite_store, job)

    assert [found[0], *found[-2:]] == [("job", "queued"), ("job", "succeeded"), ("end", "succeeded")]
    assert [state for _, state in found].count("queued") == 1


def test_events_say_what_the_job_document_says(api: httpx.Client, job: Job, sqlite_store: Store) -> None:
    launch(sqlite_store, job)
    finish(sqlite_store, job)

    (name, _, data), end = events(api.get(f"/v1/jobs/{job.id}/events").text)

    assert name == "job"
    assert json.loads(data) == api.get(f"/v1/jobs/{job.id}").json()
    assert end == ("end", "", "succeeded")


def test_events_taken_up_again_do_not_repeat_the_last(
    api: httpx.Client, job: Job, sqlite_store: Store
) -> None:
    launch(sqlite_store, job)
    finish(sqlite_store, job)
    (_, version, _), _ = events(api.get(f"/v1/jobs/{job.id}/events").text)

    again = api.get(f"/v1/jobs/{job.id}/events", headers={"Last-Event-ID": version})

    assert [name for name, _, _ in events(again.text)] == ["end"]


def test_events_of_no_job_are_not_found(api: httpx.Client) -> None:
    response = api.get("/v1/jobs/nonsense/events")

    assert (response.status_code, response.headers["content-type"]) == (404, "application/problem+json")
