"""Waits after failures: by a monotonic clock, and kept over a change of schedulers."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from service.dispatcher.backoffs import Backoffs
from service.jobs.job import Job, State, utc_now
from service.queue.store import Store
from tests.service.examples import make_job
from tests.service.world import World, killed
from training.protocol import Exit, ExitRecord

OOM = ExitRecord(rank=0, kind=Exit.OUT_OF_MEMORY, type="SIGKILL", step=5)


@pytest.fixture
def world(sqlite_store: Store, tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(sqlite_store, tmp_path_factory.mktemp("runs"))


def waiting(world: World) -> Job:
    job = world.running(retries=2)
    world.fail(job, OOM)
    job = world.rounds(job)
    assert (job.state, job.attempt, job.workers) == (State.QUEUED, 1, None)
    return job


def test_a_job_is_not_started_before_its_wait_is_over_and_blocks_no_other(world: World) -> None:
    job = waiting(world)

    world.wait(job.backoff_seconds - 1)
    other = world.starting(resources={"workers": 1})
    assert world.look(job).state is State.QUEUED
    assert world.look(other).state is State.STARTING
    assert job.not_before is not None

    world.wait(1)
    again = world.rounds(job)
    assert (again.state, again.attempt, again.backoff_seconds) == (State.STARTING, 2, 0)
    assert (again.not_before, again.failures) == (None, 1)


def test_the_reason_of_the_wait_comes_back_after_another_problem(world: World) -> None:
    job = waiting(world)
    assert "(out_of_memory); retry 1 of 2" in job.reason
    assert f"after a wait of {job.backoff_seconds:.0f} s" in job.reason

    world.store.note(job, "waits: Ray is not reachable")

    assert world.rounds(job).reason == f"starts after a wait of {job.backoff_seconds:.0f} s"


def test_a_job_that_waits_can_be_cancelled_and_paused(world: World) -> None:
    cancelled, paused = waiting(world), waiting(world)

    world.store.request_cancel(cancelled.id)
    world.store.request_pause(paused.id)
    world.store.request_resume(paused.id)

    assert world.look(cancelled).state is State.CANCELLED
    assert world.rounds(paused).state is State.QUEUED
    assert world.after_backoff(paused).state is State.STARTING


@pytest.mark.parametrize(("step", "expected"), [(0, 20), (5, 15), (-3_600, 20), (3_600, 0)])
def test_the_next_scheduler_waits_for_what_is_left_and_never_longer(step: float, expected: float) -> None:
    """step: how far the wall clock has gone, or was set, when it begins."""
    began = utc_now()
    job = replace(make_job(), backoff_seconds=20.0, not_before=began + timedelta(seconds=20))

    found = Backoffs(lambda: 100.0, lambda: began + timedelta(seconds=step)).waiting([job])

    assert found == ({job.id: pytest.approx(expected)} if expected else {})


def test_a_step_of_the_wall_clock_changes_no_wait_that_was_seen() -> None:
    now, wall = 0.0, utc_now()
    job = replace(make_job(), backoff_seconds=20.0, not_before=wall + timedelta(seconds=20))
    backoffs = Backoffs(lambda: now, lambda: wall)
    assert backoffs.waiting([job]) == {job.id: pytest.approx(20)}

    for step in (-7_200, 7_200):
        wall += timedelta(seconds=step)
        now += 9
        assert backoffs.waiting([job])
    now += 2
    assert backoffs.waiting([job]) == {}
    assert backoffs.waiting([]) == {}


def test_failures_with_progress_in_between_do_not_wait(world: World) -> None:
    job = world.running(retries=3)

    for step in (5, 9, 12):
        world.fail(job, killed(step=step))
        job = world.rounds(job)
        assert (job.state, job.attempt, job.failures_in_row) == (State.RUNNING, 1, 1)
        world.train(job)
        world.rounds(job)
