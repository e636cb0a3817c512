"""Sweeps as the scheduler sees them, round by round: the limit, the run that is the parent, its end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from service.jobs.job import Job, utc_now
from service.jobs.sweep import Sweep, new_sweep
from service.queue.store import Store
from tests.service.examples import make_data
from tests.service.world import Killed, Tap, World, die, tapped, work
from training.spec import load_yaml
from training.spec.sweep import SweepPlan, expanded


@pytest.fixture
def world(sqlite_store: Store, tmp_path: Path) -> World:
    return World(sqlite_store, tmp_path / "runs")


def create(world: World, points: int = 3, **plan: Any) -> tuple[Sweep, list[Job]]:
    document, full = make_data(source={"user": "ada"}), SweepPlan(repeat=points, **plan)
    expansion, _ = expanded(document, full)
    sweep = new_sweep("mine", document, full, expansion, created_at=utc_now())
    world.store.create_sweep(sweep, expansion)
    return sweep, [world.store.get(job.id) for job in world.store.jobs_of_sweep(sweep.id)]


def states(world: World, jobs: list[Job]) -> list[str]:
    return [world.look(job).state.value for job in jobs]


def test_no_more_jobs_run_than_the_sweep_allows(world: World) -> None:
    sweep, jobs = create(world, max_running=1)
    other = world.create()

    world.rounds(other)
    assert states(world, [*jobs, other]) == ["starting", "queued", "queued", "starting"]
    assert world.look(jobs[1]).reason == f"waits: 1 of at most 1 job of sweep {sweep.id} runs"
    world.train(jobs[0])
    world.finish(jobs[0])
    world.rounds(other)

    assert states(world, jobs) == ["succeeded", "starting", "queued"]


def test_the_runs_of_its_jobs_are_below_that_of_the_sweep(world: World) -> None:
    sweep, jobs = create(world)
    world.rounds(jobs[0])

    parent = world.store.get_sweep(sweep.id).run
    assert parent is not None
    children = {world.results.tags[world.run(job).run_id]["mlflow.parentRunId"] for job in jobs}
    assert children == {parent.run_id}
    assert {world.run(job).experiment_id for job in jobs} == {parent.experiment_id}
    assert len(world.results.jobs) == 4
    tags = world.results.tags[parent.run_id]
    assert tags["mlflow.user"] == "ada"
    assert f"syncbn show {sweep.id}" in tags["mlflow.note.content"]
    assert "repeat: 3" in tags["mlflow.note.content"]
    document = load_yaml(world.results.artifacts[parent.run_id]["sweep.yaml"])
    assert isinstance(document, dict)
    again, _ = expanded(document, SweepPlan(**document.pop("sweep")))
    assert tuple(point.values for point in again) == sweep.points


@pytest.mark.parametrize("calls", range(12))
def test_a_scheduler_killed_at_any_call_leaves_one_parent(world: World, calls: int) -> None:
    sweep, jobs = create(world, 2)
    dispatcher = tapped(world, Tap(calls, die))

    def rounds() -> None:
        for _ in range(3):
            work(dispatcher, world.results)

    with pytest.raises(Killed):
        rounds()

    world.dispatcher = world.new_dispatcher()
    world.rounds(jobs[0])

    assert states(world, jobs) == ["starting", "starting"]
    assert sorted(world.results.jobs.values()) == sorted([sweep.id, *(job.id for job in jobs)])


@pytest.mark.parametrize("call", ["set_sweep_experiment", "ensure_run", "upload", "set_sweep_run", "set_run"])
def test_a_parent_whose_scheduler_is_killed_is_ended_with_its_cancelled_sweep(
    world: World, call: str
) -> None:
    sweep, jobs = create(world, 2)
    with pytest.raises(Killed):
        work(tapped(world, Tap(call, die)), world.results)
    created = set(world.results.jobs)

    world.store.cancel_sweep(sweep.id)
    world.rounds(jobs[0])

    assert bool(created) == (call in {"upload", "set_sweep_run", "set_run"})
    assert world.results.endings == dict.fromkeys(created, "KILLED")
    assert world.store.unarchived_sweeps() == []


def test_the_parent_ends_with_its_last_job(world: World) -> None:
    sweep, jobs = create(world, 2)
    world.rounds(jobs[0])
    parent = world.store.get_sweep(sweep.id).run
    assert parent is not None
    for job in jobs:
        world.train(job)
    world.finish(jobs[0])
    world.rounds(jobs[0])
    assert parent.run_id not in world.results.endings
    world.finish(jobs[1])
    world.rounds(jobs[0])

    assert world.results.endings[parent.run_id] == "FINISHED"
    assert world.store.unarchived_sweeps() == []


def test_a_cancelled_sweep_ends_its_parent_so(world: World) -> None:
    sweep, jobs = create(world, max_running=1)
    untouched, _ = create(world)
    world.store.cancel_sweep(untouched.id)
    world.rounds(jobs[0])
    world.train(jobs[0])

    world.store.cancel_sweep(sweep.id)
    world.rounds(jobs[0])

    parent = world.store.get_sweep(sweep.id).run
    assert parent is not None
    assert states(world, jobs) == ["cancelled"] * 3
    assert world.results.endings[parent.run_id] == "KILLED"
    assert world.store.get_sweep(untouched.id).run is None
    assert world.store.unarchived_sweeps() == []


def test_a_paused_sweep_goes_on_where_it_was(world: World) -> None:
    sweep, jobs = create(world, max_running=2)
    world.rounds(jobs[0])
    for job in jobs[:2]:
        world.train(job)
    world.rounds(jobs[0])

    world.store.pause_sweep(sweep.id)
    world.rounds(jobs[0])
    assert states(world, jobs) == ["paused"] * 3
    world.store.resume_sweep(sweep.id)
    world.rounds(jobs[0])

    assert states(world, jobs) == ["starting", "starting", "queued"]
    assert [world.look(job).attempt for job in jobs] == [2, 2, 0]
