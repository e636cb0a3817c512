"""A job's logs over HTTP: as text, and as events while they come."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from service.api import sse
from service.api.app import create_app
from service.backends.memory_tracking import FakeResults
from service.jobs.job import Job, State
from service.queue.store import Store
from service.settings import Settings
from tests.service.examples import make_spec
from tests.service.serving import Stage, sent_events
from training.protocol import log_file

Event = tuple[str, str, str]


@pytest.fixture
def results() -> FakeResults:
    return FakeResults()


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    path = tmp_path / "runs"
    path.mkdir()
    return path


@pytest.fixture
def api(
    stage: Stage, sqlite_store: Store, storage: Path, results: FakeResults, monkeypatch: pytest.MonkeyPatch
) -> Iterator[httpx.Client]:
    monkeypatch.setattr(sse, "POLL_S", 0.02)
    monkeypatch.setattr(sse, "HEARTBEAT_S", 0.1)
    with stage.showing(create_app(Settings(storage=str(storage)), sqlite_store, results)) as client:
        yield client


@pytest.fixture
def job(sqlite_store: Store) -> Job:
    return sqlite_store.create_job(make_spec())[0]


def launch(store: Store, job: Job, *, workers: int = 1) -> None:
    job = store.get(job.id)
    assert store.move(job, State.STARTING, attempt=job.attempt + 1, start=1, workers=workers)
    assert store.move(store.get(job.id), State.RUNNING)


def lose(store: Store, job: Job) -> None:
    assert store.move(store.get(job.id), State.QUEUED, failures=1)


def finish(store: Store, job: Job, state: State = State.SUCCEEDED) -> None:
    assert store.move(store.get(job.id), state)


def write(storage: Path, job: Job, content: str | bytes, *, attempt: int = 1, rank: int = 0) -> None:
    path = log_file(storage / job.id, attempt, rank)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        file.write(content if isinstance(content, bytes) else content.encode())


@pytest.fixture
def two_attempts(sqlite_store: Store, storage: Path, job: Job) -> Job:
    """A job of two ranks that succeeded in its second attempt."""
    launch(sqlite_store, job, workers=2)
    lose(sqlite_store, job)
    launch(sqlite_store, job, workers=2)
    finish(sqlite_store, job)
    write(storage, job, "a\nb\ntorn", attempt=1, rank=0)
    write(storage, job, "c\n", attempt=1, rank=1)
    write(storage, job, "d\ne\n", attempt=2, rank=0)
    write(storage, job, "f\n", attempt=2, rank=1)
    return job


def run_by_older_version(store: Store, results: FakeResults, job: Job, *logs: str) -> None:
    """Two attempts, the second one of which succeeded, archived in the tracking server."""
    for number, log in enumerate(logs, start=1):
        assert store.move(store.get(job.id), State.STARTING, attempt=number, start=0, workers=1)
        if number < len(logs):
            lose(store, job)
        run = results.ensure_run(job_id=job.id, name=job.name, experiment="default")
        results.upload(run, f"logs/attempt-{number}.log", log)
    store.set_run(job.id, run.experiment_id, run.run_id)
    finish(store, job)


def read(api: httpx.Client, job: Job, **query: int) -> str:
    response = api.get(f"/v1/jobs/{job.id}/logs", params=query)
    assert response.status_code == 200
    return response.text


def follow(api: httpx.Client, job: Job, last_id: str = "", **query: int) -> list[Event]:
    """All events until the end: name, id, data; of a source its header."""
    headers = {"Last-Event-ID": last_id} if last_id else {}
    text = api.get(f"/v1/jobs/{job.id}/logs", params={"follow": True, **query}, headers=headers).text
    return [
        (name, id, json.loads(data)["header"] if name == "source" else data)
        for name, id, data in sent_events(text)
    ]


def texts(events: list[Event]) -> list[str]:
    return [data for _, _, data in events if data]


# As text


def test_a_running_jobs_log_is_what_its_rank_has_printed(
    api: httpx.Client, job: Job, sqlite_store: Store, storage: Path
) -> None:
    launch(sqlite_store, job)
    write(storage, job, "one\ntwo\nthree\n")

    response = api.get(f"/v1/jobs/{job.id}/logs")

    assert response.headers["content-type"] == "text/plain; charset=utf-8"
    assert response.text == "one\ntwo\nthree\n"
    for tail, text in ((0, ""), (1, "three\n"), (2, "two\nthree\n"), (9, "one\ntwo\nthree\n")):
        assert read(api, job, tail=tail) == text
    assert api.get(f"/v1/jobs/{job.id}/logs?tail=-1").status_code == 422


def test_a_waiting_job_has_an_empty_log(api: httpx.Client, job: Job) -> None:
    assert read(api, job) == read(api, job, tail=3) == ""


def test_several_logs_come_in_order_each_behind_its_header(api: httpx.Client, two_attempts: Job) -> None:
    assert read(api, two_attempts) == (
        "==> attempt 1, rank 0 <==\na\nb\ntorn\n"
        "==> attempt 1, rank 1 <==\nc\n"
        "==> attempt 2, rank 0 <==\nd\ne\n"
        "==> attempt 2, rank 1 <==\nf\n"
    )
    assert read(api, two_attempts, attempt=1) == (
        "==> attempt 1, rank 0 <==\na\nb\ntorn\n==> attempt 1, rank 1 <==\nc\n"
    )
    assert read(api, two_attempts, rank=1) == "==> attempt 1, rank 1 <==\nc\n==> attempt 2, rank 1 <==\nf\n"
    assert read(api, two_attempts, rank=0, attempt=1) == "a\nb\ntorn"


def test_a_tail_is_of_each_rank_of_the_latest_attempt(api: httpx.Client, two_attempts: Job) -> None:
    assert read(api, two_attempts, tail=1) == "==> attempt 2, rank 0 <==\ne\n==> attempt 2, rank 1 <==\nf\n"
    assert read(api, two_attempts, tail=1, rank=0, attempt=1) == "torn"


def test_a_log_of_a_rank_is_byte_for_byte_what_it_has_printed(
    api: httpx.Client, job: Job, sqlite_store: Store, storage: Path
) -> None:
    launch(sqlite_store, job)
    content = bytes(range(256)) * 1000
    write(storage, job, content)

    response = api.get(f"/v1/jobs/{job.id}/logs?rank=0")

    assert response.content == content
    assert response.headers["content-length"] == "256000"


def test_half_of_a_log_is_not_taken_for_all_of_it(
    api: httpx.Client, job: Job, sqlite_store: Store, storage: Path
) -> None:
    launch(sqlite_store, job)
    write(storage, job, "")
    path = log_file(storage / job.id, 1, 0)
    with path.open("wb") as file:
        file.truncate(2**28)  # more than the connection holds

    with api.stream("GET", f"/v1/jobs/{job.id}/logs") as response:
        path.write_text("")
        with pytest.raises(httpx.RemoteProtocolError):
            response.read()


def test_what_there_is_not_is_not_found(api: httpx.Client, two_attempts: Job) -> None:
    path = f"/v1/jobs/{two_attempts.id}/logs"

    for query in ("attempt=3", "rank=2", "rank=2&attempt=1", "attempt=3&follow=true", "rank=2&follow=true"):
        response = api.get(f"{path}?{query}")
        assert (response.status_code, query) == (404, query)
    assert "no log of rank 2, only of 0, 1" in response.json()["detail"]
    assert api.get(f"{path}?attempt=0").status_code == 422


def test_a_rank_that_has_not_printed_yet_has_an_empty_log(
    api: httpx.Client, job: Job, sqlite_store: Store, storage: Path
) -> None:
    launch(sqlite_store, job, workers=2)
    assert read(api, job, rank=1) == ""
    write(storage, job, "first\n")
    assert read(api, job, rank=1) == ""


def test_a_storage_that_cannot_be_read_is_said(
    api: httpx.Client, job: Job, sqlite_store: Store, storage: Path
) -> None:
    launch(sqlite_store, job)
    storage.rmdir()

    response = api.get(f"/v1/jobs/{job.id}/logs")

    assert response.status_code == 503
    assert f"the run folder is not reachable: {storage}" in response.json()["detail"]


def test_logs_need_no_tracking_server(api: httpx.Client, two_attempts: Job, results: FakeResults) -> None:
    results.unreachable = True

    assert read(api, two_attempts, attempt=2, rank=1) == "f\n"
    assert texts(follow(api, two_attempts))[-1] == "succeeded"


def test_an_older_versions_log_is_its_archived_attempts_in_order(
    api: httpx.Client, job: Job, sqlite_store: Store, results: FakeResults
) -> None:
    run_by_older_version(sqlite_store, results, job, "first\n", "second\n")

    assert read(api, job) == "==> attempt 1 <==\nfirst\n==> attempt 2 <==\nsecond\n"
    assert texts(follow(api, job)) == [
        "==> attempt 1 <==",
        "first",
        "==> attempt 2 <==",
        "second",
        "succeeded",
    ]
    assert api.get(f"/v1/jobs/{job.id}/logs?rank=0").status_code == 404
    results.unreachable = True
    assert api.get(f"/v1/jobs/{job.id}/logs").status_code == 503


# As events


def test_following_an_ended_job_gives_each_line_and_the_end(
    api: httpx.Client, job: Job, sqlite_store: Store, storage: Path
) -> None:
    launch(sqlite_store, job)
    write(storage, job, b"one\n\ntw\xc3\xb6\xe2\x80\xa8\n\xff\nbar 1\rbar 2\r\nunfinished")
    finish(sqlite_store, job, State.FAILED)

    found = follow(api, job)

    assert found == [
        ("source", "1:0:0", None),
        ("log", "1:4:0", "one"),
        ("log", "1:5:0", ""),
        ("log", "1:13:0", "twö\u2028"),
        ("log", "1:15:0", "\ufffd"),
        ("log", "1:28:0", "bar 1\nbar 2"),
        ("log", "1:38:0", "unfinished"),
        ("end", "", "failed"),
    ]


def test_the_accept_header_asks_for_events_too(api: httpx.Client, job: Job, sqlite_store: Store) -> None:
    finish(sqlite_store, job, State.CANCELLED)

    response = api.get(f"/v1/jobs/{job.id}/logs", headers={"Accept": "text/event-stream"})

    assert response.headers["content-type"].startswith("text/event-stream")
    assert sent_events(response.text) == [("end", "", "cancelled")]


def test_following_goes_from_waiting_through_a_lost_attempt_to_the_end(
    api: httpx.Client, job: Job, sqlite_store: Store, storage: Path
) -> None:
    with api.stream("GET", f"/v1/jobs/{job.id}/logs?follow=true") as response:
        lines = response.iter_lines()
        data = (line.removeprefix("data: ") for line in lines if line.startswith("data: "))
        assert next(lines) == ": still here"  # it waits
        launch(sqlite_store, job)
        write(storage, job, "one\nhal")
        assert json.loads(next(data)) == {"attempt": 1, "rank": 0, "header": None}
        assert next(data) == "one"
        assert ": still here" in lines  # half a line is not shown
        write(storage, job, "f\ntorn off")
        assert next(data) == "half"
        lose(sqlite_store, job)
        assert next(data) == "torn off"
        launch(sqlite_store, job)
        write(storage, job, "two\n", attempt=2)
        header = "==> attempt 2, rank 0 <=="
        assert json.loads(next(data)) == {"attempt": 2, "rank": 0, "header": header}
        assert next(data) == "two"
        finish(sqlite_store, job)
        assert list(data) == ["succeeded"]


def test_lines_of_several_ranks_are_told_apart(
    api: httpx.Client, job: Job, sqlite_store: Store, storage: Path
) -> None:
    launch(sqlite_store, job, workers=2)
    write(storage, job, "alone\n")
    with api.stream("GET", f"/v1/jobs/{job.id}/logs?follow=true") as response:
        lines = response.iter_lines()
        data = (line.removeprefix("data: ") for line in lines if line.startswith("data: "))
        assert json.loads(next(data)) == {"attempt": 1, "rank": 0, "header": None}
        assert next(data) == "alone"
        write(storage, job, "second\n", rank=1)
        assert json.loads(next(data)) == {"attempt": 1, "rank": 1, "header": "==> attempt 1, rank 1 <=="}
        assert next(data) == "second"
        write(storage, job, "third\n", rank=1)
        assert next(data) == "third"
        write(storage, job, "first\n")
        assert json.loads(next(data)) == {"attempt": 1, "rank": 0, "header": "==> attempt 1, rank 0 <=="}
        assert next(data) == "first"


def test_following_one_rank_gives_its_lines_alone(api: httpx.Client, two_attempts: Job) -> None:
    found = follow(api, two_attempts, rank=1)

    assert texts(found) == ["==> attempt 1, rank 1 <==", "c", "==> attempt 2, rank 1 <==", "f", "succeeded"]
    assert found[1] == ("log", "1:2:0", "c")


def test_following_an_attempt_ends_with_it(
    api: httpx.Client, job: Job, sqlite_store: Store, storage: Path
) -> None:
    launch(sqlite_store, job)
    write(storage, job, "one\ntorn")
    lose(sqlite_store, job)

    assert texts(follow(api, job, attempt=1)) == ["one", "torn", "queued"]
    launch(sqlite_store, job)
    assert texts(follow(api, job, attempt=1))[:-1] == ["one", "torn"]


def test_following_can_begin_near_the_end(api: httpx.Client, two_attempts: Job) -> None:
    assert texts(follow(api, two_attempts, tail=1)) == [
        "==> attempt 2, rank 0 <==",
        "e",
        "==> attempt 2, rank 1 <==",
        "f",
        "succeeded",
    ]
    assert texts(follow(api, two_attempts, tail=0)) == ["succeeded"]
    assert texts(follow(api, two_attempts, tail=1, rank=0, attempt=1)) == ["torn", "succeeded"]


def test_a_reader_knows_where_it_began_before_the_first_line(
    api: httpx.Client, job: Job, sqlite_store: Store, storage: Path
) -> None:
    launch(sqlite_store, job)
    write(storage, job, "one\ntwo\n")
    with api.stream("GET", f"/v1/jobs/{job.id}/logs?follow=true&tail=0") as response:
        assert next(response.iter_lines()) == "id: 1:8"
    write(storage, job, "three\n")
    finish(sqlite_store, job)

    assert texts(follow(api, job, last_id="1:8", tail=0)) == ["three", "succeeded"]


def test_a_stream_taken_up_anywhere_misses_and_repeats_nothing(api: httpx.Client, two_attempts: Job) -> None:
    whole = follow(api, two_attempts)

    assert texts(whole) == [
        *("==> attempt 1, rank 0 <==", "a", "b", "torn", "==> attempt 1, rank 1 <==", "c"),
        *("==> attempt 2, rank 0 <==", "d", "e", "==> attempt 2, rank 1 <==", "f", "succeeded"),
    ]
    for index, (name, id, _) in enumerate(whole):
        if name != "end":
            assert follow(api, two_attempts, last_id=id) == whole[index + 1 :]


@pytest.mark.parametrize("last_id", ["x", "1", "0:1", "1:-1", "1:1:1:1", "1:,1", "9" * 30 + ":1"])
def test_a_place_that_was_not_given_out_is_refused(api: httpx.Client, job: Job, last_id: str) -> None:
    response = api.get(f"/v1/jobs/{job.id}/logs?follow=true", headers={"Last-Event-ID": last_id})

    assert response.status_code == 422
    assert response.json()["errors"][0]["key"] == "Last-Event-ID"


def test_a_place_in_another_attempt_is_refused(api: httpx.Client, two_attempts: Job) -> None:
    path = f"/v1/jobs/{two_attempts.id}/logs?follow=true&attempt=2"

    assert api.get(path, headers={"Last-Event-ID": "1:2"}).status_code == 422


def test_a_silent_stream_says_that_it_lives_and_what_is_away(
    api: httpx.Client, job: Job, sqlite_store: Store, storage: Path
) -> None:
    launch(sqlite_store, job)
    elsewhere = storage.with_name("elsewhere")
    with api.stream("GET", f"/v1/jobs/{job.id}/logs?follow=true") as response:
        lines = response.iter_lines()
        assert next(lines) == ": still here"
        storage.rename(elsewhere)
        assert any(line.startswith(": the run folder is not reachable") for line in lines)
        elsewhere.rename(storage)
        write(storage, job, "back\n")
        assert "data: back" in lines
        finish(sqlite_store, job)
        assert "event: end" in lines


def test_many_followers_do_not_hold_up_the_others(api: httpx.Client, job: Job, sqlite_store: Store) -> None:
    told = threading.Semaphore(0)

    def follow_it() -> None:
        address = f"{api.base_url}/v1/jobs/{job.id}/logs?follow=true"
        with httpx.stream("GET", address, headers=api.headers, timeout=60, trust_env=False) as response:
            lines = response.iter_lines()
            assert next(lines) == ": still here"
            told.release()
            assert "event: end" in lines

    followers = [threading.Thread(target=follow_it) for _ in range(60)]
    for follower in followers:
        follower.start()
    for _ in followers:
        assert told.acquire(timeout=60)

    assert api.get(f"/v1/jobs/{job.id}", timeout=60).status_code == 200
    finish(sqlite_store, job, State.CANCELLED)
    for follower in followers:
        follower.join(timeout=60)
    assert not any(follower.is_alive() for follower in followers)
