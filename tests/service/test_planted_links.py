"""What a job has put in place of a folder of its run: the service neither reads, writes nor deletes there."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from service.cleanup.remains import Remains
from service.errors import NotFound, Unavailable
from service.job_files import JobFiles
from service.jobs.job import Job
from service.log_files import append_line
from service.metrics.spool import waiting_bytes
from service.queue.store import Store
from service.settings import Settings
from tests.service.world import World
from training.checkpoints.folder import Checkpoints


@pytest.fixture
def world(sqlite_store: Store, tmp_path: Path) -> World:
    world = World(sqlite_store, tmp_path / "runs")
    world.settings = Settings(mlflow_url="http://mlflow.invalid", storage=str(world.folder))
    return world


@pytest.fixture
def job(world: World) -> Job:
    return world.running(retries=0)


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder that is not the job's, with something in it that looks like a checkpoint."""
    folder = tmp_path / "outside"
    with Checkpoints(folder).writing(10) as draft:
        (draft / "lightning.ckpt").write_text("of another")
    (folder / "token").write_text("secret")
    return folder


def content(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def replaced(world: World, job: Job, name: str, outside: Path) -> Path:
    run = world.folder / job.id
    shutil.rmtree(run / name, ignore_errors=True)
    run.mkdir(parents=True, exist_ok=True)
    (run / name).symlink_to(outside)
    return run


def test_files_behind_a_link_are_not_shown(world: World, job: Job, outside: Path) -> None:
    replaced(world, job, "files", outside)
    files = JobFiles(world.settings, job)

    assert files.all().files == []
    with pytest.raises((NotFound, Unavailable)):
        files.open("token")


def test_a_line_is_not_written_behind_a_link(world: World, job: Job, outside: Path) -> None:
    run, before = replaced(world, job, "logs", outside), content(outside)

    with pytest.raises(OSError, match="logs"):
        append_line(run, 1, "syncbn: restarted")

    assert content(outside) == before


def test_a_deleted_job_takes_the_link_along_and_nothing_behind_it(
    world: World, job: Job, outside: Path
) -> None:
    run, before = replaced(world, job, "checkpoints", outside), content(outside)

    Remains(world.settings, job).remove_all()

    assert not run.exists()
    assert content(outside) == before


def test_checkpoints_are_not_removed_through_a_link_that_comes_late(outside: Path, tmp_path: Path) -> None:
    before = content(outside)
    (tmp_path / "checkpoints").symlink_to(outside)

    with pytest.raises(OSError, match="checkpoints"):
        Checkpoints(tmp_path / "checkpoints").remove("step-000000010")

    assert content(outside) == before


def test_a_link_in_place_of_a_number_is_not_read(world: World, job: Job, outside: Path) -> None:
    (outside / "number").write_text("3")
    run = replaced(world, job, "spool.sent", outside / "number")
    (run / "spool").write_bytes(b"12345")

    assert waiting_bytes([run]) == 5
