"""Deleted jobs, retries from step 0 and retention: what goes, what stays, whatever is killed in between."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from service.access.audit import Note
from service.cleanup.remains import Remains
from service.errors import Conflict, NotFound, Unavailable
from service.jobs.job import Job, Removed, State
from service.queue.store import Store
from service.settings import Settings
from tests.service.world import Killed, Tap, World, die, killed, tapped
from training.checkpoints.folder import Checkpoints
from training.run_dir import RunFolder


@pytest.fixture
def world(sqlite_store: Store, tmp_path_factory: pytest.TempPathFactory) -> World:
    """Its checkpoints are in the run folders, and it keeps no part of a job longer than it has to."""
    world = World(sqlite_store, tmp_path_factory.mktemp("runs"))
    return with_settings(world)


def with_settings(world: World, **changes: Any) -> World:
    world.settings = Settings(mlflow_url="http://mlflow.invalid", storage=str(world.folder), **changes)
    world.dispatcher = world.new_dispatcher()
    return world


def files(world: World, job: Job) -> dict[str, int]:
    """What a job leaves: two checkpoints and a best one, a log, and a spool that MLflow has."""
    run = RunFolder(path=world.folder / job.id)
    checkpoints = Checkpoints(run.checkpoints, keep_last=2)
    for step, metric in ((10, 0.1), (20, 0.5), (30, 0.4)):
        with checkpoints.writing(step, metric=metric) as draft:
            (draft / "lightning.ckpt").write_bytes(b"x" * 1000)
    world.print(job, "hello\n")
    run.spool.write_bytes(b"1 1 0.5 loss\n")
    run.spool.with_name("spool.sent").write_text("13")
    (run.path / "files").mkdir()
    (run.path / "files" / "own.csv").write_text("a,b")
    return checkpoints.sizes()


def failed(world: World, **changes: Any) -> Job:
    job = world.running(retries=0, **changes)
    files(world, job)
    world.fail(job, killed(step=31))
    job = world.rounds(job)
    assert (job.state, job.archived_at is not None) == (State.FAILED, True)
    return job


def entries(world: World, job: Job, folder: str = "") -> set[str]:
    path = world.folder / job.id / folder
    return {each.name for each in path.iterdir()} if path.exists() else set()


# Deletion


def test_a_deleted_job_leaves_nothing_but_its_run(world: World) -> None:
    digest = world.store.put_code(b"zip")
    job, other = failed(world, code=digest), failed(world)
    world.store.delete_job(job.id)

    world.clean()

    assert not (world.folder / job.id).exists()
    assert (world.folder / other.id).exists()
    assert world.store.deleted() == []
    assert world.results.deleted == set()
    assert world.store.remove_unused_code(0) == 3


def test_its_run_goes_if_that_was_asked_for(world: World) -> None:
    job = failed(world)
    world.store.delete_job(job.id, with_run=True)
    world.results.unreachable = True
    world.dispatcher.cleaner.clean_all()
    assert (world.folder / job.id).exists()

    world.results.unreachable = False
    world.clean()

    assert job.run is not None
    assert world.results.deleted == {job.run.run_id}
    assert not (world.folder / job.id).exists()


@pytest.mark.parametrize("moment", ["delete", "remove_job", "remove_unused_code"])
def test_a_deletion_goes_on_after_a_kill(world: World, moment: str) -> None:
    job = failed(world)
    world.store.delete_job(job.id, with_run=True)
    with pytest.raises(Killed):
        tapped(world, Tap(moment, die)).cleaner.clean_all()

    world.clean()

    assert not (world.folder / job.id).exists()
    assert world.store.deleted() == []


def test_what_is_left_of_a_removal_is_found_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    job = failed(world)
    world.store.delete_job(job.id)

    def full(path: Path) -> None:
        raise OSError(5, "Input/output error", str(path))

    with monkeypatch.context() as patch:
        patch.setattr("service.cleanup.remains.shutil.rmtree", full)
        world.dispatcher.cleaner.clean_all()
    assert [marked.id for marked in world.store.deleted()] == [job.id]

    world.clean()

    assert list(world.folder.iterdir()) == []


def test_nothing_is_removed_while_ranks_may_still_write(world: World) -> None:
    job = failed(world)
    world.store.delete_job(job.id)

    world.dispatcher.cleaner.keep_from({job.id})
    world.dispatcher.cleaner.clean_all()

    assert (world.folder / job.id).exists()


def test_without_the_storage_nothing_counts_as_removed(world: World) -> None:
    job = failed(world)
    world.store.delete_job(job.id)
    hidden = world.folder.rename(world.folder.with_name("elsewhere"))
    world.dispatcher.cleaner.clean_all()
    assert world.store.deleted() != []

    hidden.rename(world.folder)
    world.clean()

    assert world.store.deleted() == []


# Retry


def test_a_retried_job_goes_on_in_its_run_which_is_open_again(world: World) -> None:
    job = failed(world)
    run = world.run(job)
    assert world.results.endings == {run.run_id: "FAILED"}

    world.store.request_retry(job.id)
    again = world.rounds(job)

    assert (again.state, again.attempt, again.run) == (State.STARTING, 2, run)
    assert world.results.endings == {}
    assert "step-000000030" in entries(world, job, "checkpoints")
    world.train(job)
    world.rounds(job)
    world.finish(job)
    assert world.rounds(job).ended_by == "job"
    assert world.results.endings == {run.run_id: "FINISHED"}


def test_a_retry_from_step_0_finds_nothing_and_has_a_run_of_its_own(world: World) -> None:
    job = failed(world)
    run = world.run(job)
    world.store.request_retry(job.id, from_scratch=True)

    waiting = world.rounds(job)
    assert (waiting.state, waiting.attempt) == (State.QUEUED, 1)
    assert waiting.reason == "waits until its checkpoints are removed: it begins from step 0"
    world.clean()
    again = world.rounds(job)

    assert (again.state, again.attempt) == (State.STARTING, 2)
    assert entries(world, job) == {"logs"}
    assert world.run(job) != run
    assert world.results.endings == {run.run_id: "KILLED"}


@pytest.mark.parametrize("moment", ["set_tag", "end", "begin_again"])
def test_a_retry_from_step_0_survives_kills(world: World, moment: str) -> None:
    job = failed(world)
    world.store.request_retry(job.id, from_scratch=True)
    doomed = tapped(world, Tap(moment, die))
    doomed.round()
    with pytest.raises(Killed):
        doomed.cleaner.clean_all()

    world.round()
    world.clean()

    assert world.rounds(job).state is State.STARTING
    assert len(world.results.jobs) == 2


def test_a_scheduler_that_comes_too_late_removes_nothing_of_a_job_that_runs_again(world: World) -> None:
    job = failed(world)
    asked = world.store.request_retry(job.id, from_scratch=True)
    world.store.begin_again(job.id)

    with pytest.raises(Conflict):
        Remains(world.settings, asked, lambda: world.store.is_to_begin_again(job.id)).remove_for_new_start()

    assert "step-000000030" in entries(world, job, "checkpoints")


def test_a_retry_while_the_end_is_archived_leaves_the_run_open(world: World) -> None:
    job = world.running(retries=0)
    world.fail(job, killed())
    world.dispatcher.round()
    tap = Tap("mark_archived", lambda: world.store.request_retry(job.id))

    tapped(world, tap).finisher.finish_all()

    assert tap.done
    assert world.results.endings == {}
    assert world.rounds(job).state is State.STARTING


# Retention


def aged(world: World, **days: float) -> World:
    """The same world with a policy, two days later."""
    with_settings(world, **{f"retention_{part}_days": after for part, after in days.items()})
    world.now += timedelta(days=2).total_seconds()
    return world


def test_by_default_everything_is_kept(world: World) -> None:
    job = failed(world)
    before = entries(world, job)

    aged(world).dispatcher.cleaner.clean_all()

    assert entries(world, job) == before


def test_entries_of_the_audit_log_go_by_their_age(world: World) -> None:
    note = Note(who="ada", credential="k", address="", action="GET /v1/jobs", about="/v1/jobs")
    world.store.add_audit(note, 403)

    aged(world, audit=3).dispatcher.cleaner.clean_all()
    kept = world.store.list_audit()[0]
    aged(world, audit=1).dispatcher.cleaner.clean_all()

    assert len(kept) == 1
    assert world.store.list_audit() == ([], None)


def test_only_the_best_and_the_last_checkpoint_are_kept(world: World) -> None:
    job = failed(world)

    aged(world, other_checkpoints=1).dispatcher.cleaner.clean_all()

    assert entries(world, job, "checkpoints") == {"step-000000010", "step-000000030"}
    assert world.look(job).removed is Removed.OTHER_CHECKPOINTS
    assert world.store.request_retry(job.id).state is State.QUEUED


def test_each_part_goes_by_its_own_age_and_the_rest_stays(world: World) -> None:
    job = failed(world)

    aged(world, checkpoints=3, logs=1, spools=1)
    for _ in range(3):
        world.dispatcher.cleaner.clean_all()

    assert entries(world, job) == {"checkpoints", "files"}
    assert set(world.look(job).removed.names) == {"logs", "spool"}


def test_a_spool_with_metrics_that_mlflow_has_not_is_kept(world: World) -> None:
    job = failed(world)
    (world.folder / job.id / "spool.sent").write_text("5")

    aged(world, spools=1).dispatcher.cleaner.clean_all()

    assert "spool" in entries(world, job)


def test_a_removal_by_retention_goes_on_after_a_kill(world: World) -> None:
    job = failed(world)
    aged(world, checkpoints=0)
    with pytest.raises(Killed):
        tapped(world, Tap("is_removing", die)).cleaner._retention.apply()
    assert "step-000000030" in entries(world, job, "checkpoints")
    with pytest.raises(Conflict, match="try again in a moment"):
        world.store.request_retry(job.id)

    world.dispatcher.cleaner._retention.finish()

    assert entries(world, job, "checkpoints") == set()
    assert world.look(job).removing is Removed.NOTHING


def test_a_folder_that_is_no_jobs_is_never_touched(world: World) -> None:
    job = failed(world)

    with pytest.raises(AssertionError):
        Remains(world.settings, replace(job, id="../etc"))


def test_a_job_that_is_gone_says_so(world: World) -> None:
    job = failed(world)
    world.store.delete_job(job.id)

    with pytest.raises(NotFound, match="was deleted"):
        world.look(job)
    with pytest.raises(Unavailable):
        Remains(Settings(storage=str(world.folder / "none")), job).sizes(Removed.LOGS)
