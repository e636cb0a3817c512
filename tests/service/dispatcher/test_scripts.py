"""What the dispatcher makes of jobs that run a script: they have no progress, and stop by a signal."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.jobs.job import Job, State
from service.queue.store import Store
from tests.service.world import World, error
from training.protocol import Exit, ExitRecord
from training.spec import parse_spec


@pytest.fixture
def world(sqlite_store: Store, tmp_path: Path) -> World:
    world = World(sqlite_store, tmp_path / "runs")
    world.cluster.obeys = False
    return world


def running(world: World) -> Job:
    spec = {
        "script": {"path": "tools/train.py", "grace_seconds": 7},
        "resources": {"workers": {"min": 2, "max": 4}},
        "retries": 2,
    }
    job, _ = world.store.create_job(parse_spec(spec))
    world.rounds(job)
    world.cluster.run(world.name(job), None)
    return world.rounds(job)


@pytest.mark.parametrize("command", ["pause", "resize"])
def test_a_script_that_stops_goes_on_when_it_is_started_again(world: World, command: str) -> None:
    job = running(world)
    assert (job.state, job.progress, job.workers) == (State.RUNNING, None, 4)

    if command == "pause":
        world.store.request_pause(job.id)
    else:
        world.store.request_resize(job.id, 2)
    world.rounds(job)
    assert set(world.cluster.stops) == {(f"{job.id}-1", 7.0)}
    world.cluster.save(f"{job.id}-1", 0)
    stopped = world.rounds(job)
    if command == "pause":
        assert (stopped.state, stopped.reason) == (State.PAUSED, "paused")
        world.store.request_resume(job.id)
        stopped = world.rounds(job)
    assert (stopped.state, stopped.attempt, stopped.failures) == (State.STARTING, 2, 0)
    assert stopped.workers == (2 if command == "resize" else 4)

    world.cluster.run(f"{job.id}-2", None)
    world.rounds(job)
    world.finish(job)
    assert world.rounds(job).state is State.SUCCEEDED


def test_a_cancelled_script_has_its_time_and_is_never_called_finished(world: World) -> None:
    job = running(world)

    world.store.request_cancel(job.id)
    world.rounds(job)
    world.cluster.save(f"{job.id}-1", 0)

    assert world.rounds(job).state is State.CANCELLED
    assert set(world.cluster.stops) == {(f"{job.id}-1", 7.0)}


def test_a_script_is_started_again_as_often_as_it_may_even_if_it_fails_the_same_way(world: World) -> None:
    job = running(world)

    for failures in (1, 2):
        world.fail(job, ExitRecord(rank=1, kind=Exit.EXITED, code=3, message="boom", counts_steps=False))
        job = world.rounds(job)
        if failures == 1:
            assert (job.state, job.start, job.failures) == (State.RUNNING, 2, 1)
            assert job.reason == (
                "rank 1 exited with code 3: boom (user_error); starting again (1 of 2 retries used)"
            )
        else:
            assert (job.state, job.attempt, job.failures) == (State.QUEUED, 1, 2)
            job = world.after_backoff(job)
            assert (job.state, job.attempt) == (State.STARTING, 2)
        world.cluster.run(world.name(job), None)
        assert world.rounds(job).reason == ""
    world.fail(job, error(counts_steps=False))

    failed = world.rounds(job)
    assert (failed.state, failed.error and failed.error["type"]) == (State.FAILED, "ValueError")
    assert failed.reason.startswith("rank 0 failed: ValueError: boom\n2 of 2 retries were used.")


def test_the_page_of_a_script_says_that_its_result_may_depend_on_its_workers(world: World) -> None:
    tags = world.results.tags[world.run(running(world)).run_id]

    assert tags["mlflow.source.name"] == "tools/train.py"
    assert "may depend on the number of workers" in tags["syncbn.script"]
    assert "may depend on the number of workers" in tags["mlflow.note.content"]
    assert "path: tools/train.py" in tags["mlflow.note.content"]
