"""When a waiting job is expected to start, as the API shows it."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from service.api.app import create_app
from service.backends.memory_tracking import FakeResults
from service.jobs.expected import ExpectedStart
from service.jobs.job import Job, State
from service.queue.store import Store
from service.scheduling.estimates import FIRST
from service.settings import Settings
from tests.service.examples import make_data, make_spec
from tests.service.live_api import NODE, find_ray
from tests.service.serving import Stage
from training.protocol import Progress

BECAUSE = "when job j1 ends"


def in_seconds(seconds: float) -> datetime:
    return datetime.now(UTC) + timedelta(seconds=seconds)


def write(store: Store, job_id: str, seconds: float, **more: Any) -> ExpectedStart:
    start = ExpectedStart(at=in_seconds(seconds), because=BECAUSE, **more)
    store.write_expected([(store.get(job_id), start)])
    return start


@pytest.fixture
def api(stage: Stage, sqlite_store: Store) -> Iterator[httpx.Client]:
    find_ray(sqlite_store, nodes=[NODE])
    with stage.showing(create_app(Settings(), sqlite_store, FakeResults())) as client:
        yield client


@pytest.fixture
def job(sqlite_store: Store) -> Job:
    return sqlite_store.create_job(make_spec())[0]


def shown(api: httpx.Client, job: Job) -> list[Any]:
    """What the job, the list of jobs and the queue say."""
    alone = api.get(f"/v1/jobs/{job.id}").json()
    pages = (api.get(path).json()["items"] for path in ("/v1/jobs", "/v1/queue"))
    return [each["expected_start"] for each in (alone, *(items[0] for items in pages))]


def test_it_is_in_jobs_lists_and_the_queue(api: httpx.Client, sqlite_store: Store, job: Job) -> None:
    assert shown(api, job) == [None] * 3

    start = write(sqlite_store, job.id, 720, at_latest=True)

    found = shown(api, job)
    assert found[0] == found[1] == found[2]
    assert datetime.fromisoformat(found[0].pop("at")) == start.at
    assert found[0] == {"because": BECAUSE, "at_latest": True}


def test_no_moment_is_in_the_past(api: httpx.Client, sqlite_store: Store, job: Job) -> None:
    write(sqlite_store, job.id, -1)

    soon = {"at": None, "because": f"soon, {BECAUSE}", "at_latest": False}
    assert shown(api, job) == [soon] * 3


@pytest.mark.usefixtures("job")
def test_a_job_too_far_behind_says_so(api: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.api.cluster_schemas.FIRST", 0)

    (waiting,) = api.get("/v1/queue").json()["items"]

    assert waiting["expected_start"]["because"] == f"more than {FIRST} jobs ahead"


def test_validating_says_when_a_job_would_start(api: httpx.Client, sqlite_store: Store) -> None:
    running, _ = sqlite_store.create_job(make_spec(resources={"workers": 4}))
    assert sqlite_store.move(running, State.STARTING, attempt=1, workers=4)
    starting = sqlite_store.get(running.id)
    progress = Progress(step=3, total_steps=9, epoch=1, eta_seconds=720.0)
    sqlite_store.write_progress([(starting, progress)])

    document = api.post("/v1/jobs/validate", json=make_data()).json()

    expected = document["expected_start"]
    left = (datetime.fromisoformat(expected.pop("at")) - datetime.now(UTC)).total_seconds()
    assert 600 < left <= 720
    assert expected == {"because": f"when job {running.id} ends", "at_latest": False}
    never = api.post("/v1/jobs/validate", json=make_data(resources={"workers": 8})).json()
    assert never["expected_start"] is None


def test_validating_takes_the_length_of_waiting_jobs_from_jobs_of_their_name(
    api: httpx.Client, sqlite_store: Store
) -> None:
    like = {"name": "same", "resources": {"workers": 4}, "training": {"max_epochs": 1}}
    done, _ = sqlite_store.create_job(make_spec(**like))
    assert sqlite_store.move(done, State.STARTING, attempt=1, workers=4)
    assert sqlite_store.move(sqlite_store.get(done.id), State.SUCCEEDED, ran_seconds=500.0)
    sqlite_store.create_job(make_spec(**like))

    document = api.post("/v1/jobs/validate", json=make_data()).json()

    expected = document["expected_start"]
    left = (datetime.fromisoformat(expected["at"]) - datetime.now(UTC)).total_seconds()
    assert 400 < left <= 500
    assert expected["because"] == "after 1 job ahead of it"
