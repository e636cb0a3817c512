"""/metrics, read by Prometheus's own parser."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families
from pydantic import SecretStr
from sqlalchemy import Engine, create_engine

from service import readiness
from service.api.app import create_app
from service.backends.memory_tracking import FakeResults
from service.dispatcher.figures import Figures
from service.jobs.job import State
from service.metrics import reading
from service.queue.counts import Counts
from service.queue.store import Store
from service.settings import Settings
from tests.service.examples import make_data, make_spec
from tests.service.live_api import NODE, find_ray
from tests.service.serving import Stage
from tests.service.world import World

Samples = dict[tuple[str, tuple[str, ...]], float]


@pytest.fixture(autouse=True)
def nothing_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "FRESH_SECONDS", 0.0)


@pytest.fixture
def results() -> FakeResults:
    return FakeResults()


@pytest.fixture
def api(stage: Stage, store: Store, results: FakeResults, tmp_path: Path) -> Iterator[httpx.Client]:
    with stage.showing(create_app(Settings(storage=str(tmp_path)), store, results)) as client:
        yield client


def scraped(api: httpx.Client) -> Samples:
    response = api.get("/metrics")
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    return {
        (sample.name, tuple(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }


def test_the_queue_is_shown_by_state_and_by_class_of_reason(api: httpx.Client, store: Store) -> None:
    waits, other = (store.create_job(make_spec())[0] for _ in range(2))
    store.note(waits, "needs 4 GPUs; 1 GPU free")
    store.request_cancel(other.id)

    samples = scraped(api)

    assert samples["syncbn_jobs", ("queued",)] == samples["syncbn_jobs", ("cancelled",)] == 1
    assert samples["syncbn_jobs", ("running",)] == 0
    assert samples["syncbn_jobs_waiting", ("no_room",)] == 1
    assert not [labels for _, labels in samples if waits.id in labels]


def test_a_job_leaves_its_times_in_the_figures(stage: Stage, store: Store, tmp_path: Path) -> None:
    world = World(store, tmp_path)
    job = world.running()
    world.finish(job)
    world.rounds(job)
    figures = Figures(store)
    figures.round(0.03)
    figures.failed_round()
    for nodes in ([NODE], []):
        figures.hosts(nodes)
    figures.write()

    with stage.showing(create_app(Settings(), store, FakeResults())) as api:
        samples = scraped(api)

    assert samples["syncbn_job_waiting_seconds_count", ()] == 1
    assert samples["syncbn_job_waiting_seconds_bucket", ("+Inf",)] == 1
    assert samples["syncbn_job_ends_total", ("none", "succeeded")] == 1
    assert samples["syncbn_scheduler_round_seconds_bucket", ("0.05",)] == 1
    assert samples["syncbn_scheduler_round_seconds_bucket", ("0.025",)] == 0
    assert samples["syncbn_scheduler_round_errors_total", ()] == 1
    assert samples["syncbn_hosts_lost_total", ()] == 1


def test_requests_are_counted_by_route_not_by_path(api: httpx.Client, store: Store) -> None:
    job = store.create_job(make_spec())[0]
    api.get(f"/v1/jobs/{job.id}")
    api.get("/v1/jobs/j0000000000000000000")
    api.get("/nothing/here")
    api.post("/v1/jobs", json=make_data(name=7))

    samples = scraped(api)

    counted = {labels: value for (name, labels), value in samples.items() if name.endswith("seconds_count")}
    assert counted["GET", "/v1/jobs/{job_id}", "200"] == 1
    assert counted["GET", "/v1/jobs/{job_id}", "404"] == 1
    assert counted["GET", "none", "404"] == 1
    assert counted["POST", "/v1/jobs", "422"] == 1


def test_what_does_not_answer_is_named_and_the_rest_is_shown(
    stage: Stage, sqlite_store: Store, results: FakeResults, monkeypatch: pytest.MonkeyPatch
) -> None:
    find_ray(sqlite_store)
    hangs, released = threading.Event(), threading.Event()
    counts = sqlite_store.counts

    def slow_counts() -> Counts:
        if hangs.is_set():
            released.wait(60)
        return counts()

    monkeypatch.setattr(sqlite_store, "counts", slow_counts)
    monkeypatch.setattr(reading, "DEADLINE_SECONDS", 20.0)
    with stage.showing(create_app(Settings(), sqlite_store, results)) as api:
        assert parts(scraped(api)) == dict.fromkeys(["database", "scheduler", "ray", "mlflow", "storage"], 1)

        monkeypatch.setattr(reading, "DEADLINE_SECONDS", 3.0)
        results.unreachable = True
        hangs.set()
        samples = scraped(api)

    released.set()
    up = parts(samples)
    assert (up["database"], up["mlflow"], up["scheduler"]) == (0, 0, 1)
    assert samples["syncbn_hosts", ()] == 1
    assert ("syncbn_jobs", ("queued",)) not in samples


@contextmanager
def locked(engine: Engine) -> Iterator[None]:
    """Somebody else writes, and does not end."""
    sqlite = engine.url.get_backend_name() == "sqlite"
    other = create_engine(engine.url)
    with other.connect() as connection:
        connection.exec_driver_sql("BEGIN IMMEDIATE" if sqlite else "LOCK TABLE jobs IN EXCLUSIVE MODE")
        yield
    other.dispose()


def test_a_locked_database_is_down_here_as_in_readiness(
    api: httpx.Client, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    find_ray(store)
    monkeypatch.setattr(reading, "DEADLINE_SECONDS", 20.0)
    assert parts(scraped(api))["database"] == 1

    with locked(store._engine):
        monkeypatch.setattr(readiness, "DEADLINE_SECONDS", 3.0)  # the others answer in time
        monkeypatch.setattr(reading, "DEADLINE_SECONDS", 3.0)
        up, checks = parts(scraped(api)), api.get("/readyz").json()["checks"]

    assert up == {"database": 0, "scheduler": 1, "ray": 1, "mlflow": 1, "storage": 1}
    assert {name: check["state"] == "ok" for name, check in checks.items()} == up
    while api.get("/readyz").status_code != 200 or not parts(scraped(api))["database"]:
        time.sleep(0.05)  # until those that waited for the lock have ended, too


def parts(samples: Samples) -> dict[str, float]:
    return {labels[0]: value for (name, labels), value in samples.items() if name == "syncbn_up"}


def test_a_scrape_has_the_same_rule_as_every_route(stage: Stage, sqlite_store: Store) -> None:
    locked = create_app(Settings(api_key=SecretStr("key")), sqlite_store, FakeResults())
    with stage.showing(locked) as api:
        assert api.get("/metrics").status_code == 401
        assert api.get("/metrics", headers={"Authorization": "Bearer key"}).status_code == 200


def test_openmetrics_is_spoken_to_who_asks_for_it(api: httpx.Client) -> None:
    response = api.get("/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})

    assert response.headers["content-type"].startswith("application/openmetrics-text")
    assert list(openmetrics(response.text))  # type: ignore[no-untyped-call]


def test_bytes_in_the_spool_of_a_running_job_are_counted(
    api: httpx.Client, store: Store, tmp_path: Path
) -> None:
    job = store.create_job(make_spec())[0]
    assert store.move(job, State.STARTING, attempt=1, workers=2)
    folder = tmp_path / job.id
    folder.mkdir()
    (folder / "spool").write_bytes(b"x" * 100)
    (folder / "spool.sent").write_bytes(b"%020d\n" % 40)

    assert scraped(api)["syncbn_spool_bytes", ()] == 60
