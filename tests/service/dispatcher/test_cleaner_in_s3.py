"""Deleted jobs and retention with checkpoints in object storage: what goes from the bucket, what stays."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest

from service.api.app import create_app
from service.jobs.job import Job, Removed
from service.queue.store import Store
from service.settings import Settings
from tests.service.serving import Stage
from tests.service.world import World, killed
from tests.training.checkpoints.conftest import client
from tests.training.s3_server import BUCKET, S3Server, running_s3
from training.checkpoints.bucket import Bucket
from training.checkpoints.object_store import ObjectStore

METRICS = {10: 0.5, 20: 0.1, 30: 0.4}
"""Of the checkpoints of a job, by step: the second is the best one."""


@pytest.fixture(scope="module")
def server(full_run: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:  # noqa: ARG001
    with running_s3(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def world(server: S3Server, sqlite_store: Store, tmp_path: Path) -> Iterator[World]:
    """Its checkpoints are in the bucket."""
    world = World(sqlite_store, tmp_path / "runs")
    with client(server.environment, tmp_path / "tmp"):
        world.settings = with_settings(world, checkpoints=f"s3://{BUCKET}/{uuid4().hex}")
        yield world


def with_settings(world: World, **changes: Any) -> Settings:
    """Its settings with changes, and a new scheduler that has them."""
    world.settings = world.settings.model_copy(update=changes)
    world.dispatcher = world.new_dispatcher()
    return world.settings


def failed(world: World) -> Job:
    """A job that has ended, with its checkpoints and an upload that a kill has cut off."""
    job = world.running(retries=0)
    store = ObjectStore(f"{world.settings.checkpoints}/{job.id}", keep_last=9)
    for step, metric in METRICS.items():
        with store.writing(step, metric=metric) as draft:
            (draft / "lightning.ckpt").write_bytes(b"x" * 1000)
    bucket(world, job).write("step-000000040-cut00off/lightning.ckpt", b"x" * 77)
    world.fail(job, killed(step=31))
    return world.rounds(job)


def bucket(world: World, job: Job) -> Bucket:
    return Bucket(f"{world.settings.checkpoints}/{job.id}")


def content(world: World, job: Job) -> dict[str, int]:
    """The bytes in the bucket, by name of the upload."""
    return ObjectStore(f"{world.settings.checkpoints}/{job.id}").sizes()


def steps(world: World, job: Job) -> list[int]:
    return sorted({int(name.split("-")[1]) for name in content(world, job)})


def test_a_deleted_job_leaves_nothing_in_the_bucket_and_the_others_all(world: World) -> None:
    job, other = failed(world), failed(world)
    before = content(world, other)
    world.store.delete_job(job.id)

    world.clean()

    assert content(world, job) == {}
    assert content(world, other) == before
    assert not (world.folder / job.id).exists()
    assert world.store.deleted() == []


def test_while_the_bucket_is_away_a_deleted_job_waits(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    job = failed(world)
    world.store.delete_job(job.id)

    with monkeypatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
        world.clean()
    assert [marked.id for marked in world.store.deleted()] == [job.id]
    assert 30 in steps(world, job)
    world.clean()

    assert content(world, job) == {}
    assert world.store.deleted() == []


def test_a_retry_from_step_0_finds_no_checkpoint_in_the_bucket(world: World) -> None:
    job = failed(world)
    world.store.request_retry(job.id, from_scratch=True)

    world.round()
    world.clean()

    assert content(world, job) == {}
    assert world.rounds(job).attempt == 2


@pytest.mark.parametrize(
    ("policy", "gone", "kept"),
    [
        ("other_checkpoints", [10, 40], [20, 30]),
        ("checkpoints", [10, 20, 30, 40], []),
    ],
)
def test_a_cleanup_says_what_it_would_free_frees_it_and_keeps_the_rest(
    world: World, stage: Stage, policy: str, gone: list[int], kept: list[int]
) -> None:
    job = failed(world)
    before = content(world, job)
    settings = with_settings(world, **{f"retention_{policy}_days": 0.0})
    size = sum(size for name, size in before.items() if int(name.split("-")[1]) in gone)

    with stage.showing(create_app(settings, world.store, world.results)) as api:
        planned = items(api, "GET")
        untouched = content(world, job)
        freed = items(api, "POST")
        again = items(api, "GET") + items(api, "POST")

    assert planned == freed == [(policy, job.id, size)]
    assert untouched == before
    assert again == []
    assert steps(world, job) == kept
    assert world.look(job).removed & Removed[policy.upper()]


def items(api: httpx.Client, method: str) -> list[tuple[str, str, int]]:
    """What all pages of a cleanup say."""
    found, cursor = list[tuple[str, str, int]](), None
    while True:
        page = api.request(method, "/v1/cleanup", params={"cursor": cursor} if cursor else {}).json()
        assert page["problems"] == []
        found += [(item["what"], item["job"], item["bytes"]) for item in page["items"]]
        if (cursor := page["next_cursor"]) is None:
            return found


@pytest.mark.parametrize("policy", ["other_checkpoints", "checkpoints"])
def test_a_cleanup_names_the_job_whose_bucket_is_away(
    world: World, stage: Stage, monkeypatch: pytest.MonkeyPatch, policy: str
) -> None:
    job = failed(world)
    settings = with_settings(world, **{f"retention_{policy}_days": 0.0})
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")

    with stage.showing(create_app(settings, world.store, world.results)) as api:
        page = api.get("/v1/cleanup").json()

    assert page["items"] == []
    (problem,) = page["problems"]
    assert problem.startswith(f"job {job.id}: the storage of checkpoints is not reachable: s3://")


def test_a_removal_that_was_cut_off_goes_on(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    job = failed(world)
    with_settings(world, retention_checkpoints_days=1.0)
    world.now += timedelta(days=2).total_seconds()
    remove, calls = ObjectStore.remove, list[str]()

    def cut_off(store: ObjectStore, name: str) -> None:
        remove(store, name)
        calls.append(name)
        if len(calls) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ObjectStore, "remove", cut_off)
        with suppress(KeyboardInterrupt):
            world.dispatcher.cleaner.clean_all()
    assert len(content(world, job)) == 2

    with_settings(world)
    world.clean()

    assert content(world, job) == {}
    assert world.look(job).removing == Removed(0)
