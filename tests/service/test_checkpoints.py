"""Checkpoints in object storage, as the API reads them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from service.checkpoints import JobCheckpoints
from service.errors import Unavailable
from service.jobs.job import Job
from service.settings import Settings
from tests.service.examples import make_job
from tests.service.saved import save_checkpoints
from tests.training.checkpoints.conftest import client
from tests.training.s3_server import BUCKET, running_s3
from training.checkpoints.object_store import ObjectStore


@pytest.fixture
def settings(full_run: None, tmp_path: Path) -> Iterator[Settings]:  # noqa: ARG001
    url = f"s3://{BUCKET}/{uuid4().hex}"
    with running_s3(tmp_path) as server, client(server.environment, tmp_path / "tmp"):
        yield Settings(storage=str(tmp_path / "runs"), checkpoints=url)


def save(settings: Settings, job: Job, metrics: dict[int, float]) -> None:
    store = ObjectStore(f"{settings.checkpoints}/{job.id}")
    for step, metric in metrics.items():
        with store.writing(step, metric=metric, epoch=step) as draft:
            (draft / "lightning.ckpt").write_bytes(b"of step %d" % step)


def test_checkpoints_in_object_storage_are_listed_and_read(settings: Settings) -> None:
    job = make_job()
    save(settings, job, {1: 0.5, 2: 0.25, 3: 0.75, 4: 0.5})

    checkpoints = JobCheckpoints(settings, job)

    assert [(each.step, each.epoch, each.best, each.last) for each in checkpoints.all()] == [
        (2, 2, True, False),
        (3, 3, False, False),
        (4, 4, False, True),
    ]
    opened = checkpoints.open("best")
    with opened.file as file:
        assert (file.read(3), file.read(), opened.size) == (b"of ", b"step 2", 9)


def test_a_job_from_before_the_setting_has_its_checkpoints_in_its_folder(settings: Settings) -> None:
    job = make_job()
    save_checkpoints(Path(settings.storage) / job.id, {10: 0.5})

    assert [each.step for each in JobCheckpoints(settings, job).all()] == [10]


def test_storage_that_does_not_answer_is_named(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")

    with pytest.raises(Unavailable, match=f"the storage of checkpoints at {settings.checkpoints}"):
        JobCheckpoints(settings, make_job()).all()
