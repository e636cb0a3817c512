"""What the dispatcher makes of jobs that stop and go on later: paused, preempted, moved elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.backends.cluster import Launch
from service.jobs.job import State
from service.queue.store import Store
from tests.service.world import Killed, World, error, killed
from training.protocol import Progress

ELASTIC = {"workers": {"min": 1, "max": 4}}


@pytest.fixture
def world(sqlite_store: Store, tmp_path: Path) -> World:
    """One machine of four CPUs."""
    return World(sqlite_store, tmp_path / "runs")


@pytest.fixture
def slow(world: World) -> World:
    """Attempts take their time to stop."""
    world.cluster.obeys = False
    return world


# Pausing


def test_a_paused_job_saves_itself_and_its_workers_go_to_others(slow: World) -> None:
    job, waits = slow.running(resources={"workers": 4}), slow.create(resources={"workers": 4})

    slow.store.request_pause(job.id)
    assert slow.rounds(job).state is State.PAUSING
    assert set(slow.cluster.stops) == {(f"{job.id}-1", 120.0)}
    assert slow.look(waits).state is State.QUEUED

    slow.cluster.save(f"{job.id}-1", 120)
    paused = slow.rounds(job)
    assert (paused.state, paused.reason) == (State.PAUSED, "paused at step 120")
    assert (paused.failures, paused.finished_at, paused.workers) == (0, None, None)
    assert slow.look(waits).state is State.STARTING
    assert slow.cluster.releases == [f"{job.id}-1"]
    assert slow.results.endings == {}


def test_a_resumed_job_goes_on_as_the_next_attempt_of_the_same_run(world: World) -> None:
    job = world.running()
    world.store.request_pause(job.id)
    world.rounds(job)

    world.store.request_resume(job.id)
    resumed = world.rounds(job)

    assert (resumed.state, resumed.attempt, resumed.start) == (State.STARTING, 2, 1)
    assert (resumed.failures, world.run(resumed)) == (0, world.run(job))
    world.finish(job)
    assert world.rounds(job).state is State.SUCCEEDED


@pytest.mark.parametrize("places", [False, True])
def test_a_job_is_paused_before_it_has_trained(world: World, *, places: bool) -> None:
    world.cluster.places = places
    job = world.starting()

    world.store.request_pause(job.id)

    assert world.rounds(job).state is State.PAUSED
    assert world.cluster.releases == [f"{job.id}-1"]


def test_a_held_job_does_not_start(world: World) -> None:
    job = world.create()
    world.store.request_pause(job.id)

    assert (world.rounds(job).state, world.cluster.launches) == (State.PAUSED, [])


def test_a_job_that_succeeds_while_it_pauses_has_succeeded(slow: World) -> None:
    job = slow.running()
    slow.store.request_pause(job.id)
    slow.rounds(job)

    slow.finish(job)

    assert slow.rounds(job).state is State.SUCCEEDED


def test_a_job_whose_failure_would_come_again_fails_while_it_pauses(slow: World) -> None:
    job = slow.running()
    slow.store.request_pause(job.id)
    slow.rounds(job)

    slow.fail(job, error(type="NonFiniteLoss", step=3))

    failed = slow.rounds(job)
    assert failed.state is State.FAILED
    assert failed.error is not None
    assert failed.error["step"] == 3


def test_a_job_whose_attempt_is_lost_while_it_pauses_is_paused(slow: World) -> None:
    lost, dead, gone = (slow.running(retries=0) for _ in range(3))
    for job in (lost, dead, gone):
        slow.store.request_pause(job.id)
    slow.rounds(lost)

    slow.cluster.lose(f"{lost.id}-1")
    slow.fail(dead, killed(step=3))
    slow.cluster.forget(f"{gone.id}-1")

    for job in (lost, dead, gone):
        assert (slow.rounds(job).state, slow.look(job).failures) == (State.PAUSED, 0)
    assert slow.look(dead).reason.startswith("paused; rank 0 was killed by SIGKILL at step 3")


def test_an_attempt_that_saves_itself_for_too_long_is_ended(slow: World) -> None:
    job = slow.running()
    slow.store.request_pause(job.id)

    slow.wait(124)
    assert slow.cluster.ends == []
    slow.cluster.obeys = True
    slow.cluster.stop = lambda *_, **__: None  # type: ignore[method-assign]
    slow.wait(1)

    assert slow.cluster.ends == [f"{job.id}-1"]
    assert slow.rounds(job).state is State.PAUSED


def test_a_pausing_job_that_is_cancelled_ends(slow: World) -> None:
    job = slow.running()
    slow.store.request_pause(job.id)
    slow.rounds(job)

    slow.store.request_cancel(job.id)
    assert slow.rounds(job).state is State.PAUSING
    assert slow.cluster.stops[-1] == (f"{job.id}-1", 15.0)
    slow.cluster.save(f"{job.id}-1", 3)

    assert slow.rounds(job).state is State.CANCELLED
    assert slow.results.endings == {slow.run(job).run_id: "KILLED"}


def test_a_paused_job_that_is_cancelled_keeps_the_logs_of_all_its_ranks_and_attempts(world: World) -> None:
    job = world.running(resources={"workers": 2})
    world.print(job, "epoch 1\n")
    world.print(job, "quiet\n", rank=1)
    world.store.request_pause(job.id)
    world.rounds(job)
    world.store.request_resume(job.id)
    world.rounds(job)
    world.print(job, "epoch 2\n")
    world.store.request_pause(job.id)
    world.rounds(job)

    world.store.request_cancel(job.id)

    assert world.rounds(job).archived_at is not None
    run = world.run(job)
    assert world.results.endings == {run.run_id: "KILLED"}
    artifacts = world.results.artifacts[run.run_id]
    assert {path: text for path, text in artifacts.items() if path.startswith("logs/")} == {
        "logs/attempt-1/rank-0.log": "epoch 1\n",
        "logs/attempt-1/rank-1.log": "quiet\n",
        "logs/attempt-2/rank-0.log": "epoch 2\n",
    }


def test_an_attempt_that_was_launched_into_a_pause_is_ended_before_the_next_one_starts(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scheduler that launches it stood still so long that another one saw the pause, and dies then."""
    job, launch = world.create(), world.cluster.launch

    def launch_late(order: Launch) -> None:
        monkeypatch.setattr(world.cluster, "launch", launch)
        world.store.request_pause(job.id)
        world.round()
        assert world.look(job).state is State.PAUSED
        launch(order)
        raise Killed

    world.dispatcher.round()
    world.dispatcher.runs.create_all()
    monkeypatch.setattr(world.cluster, "launch", launch_late)
    with pytest.raises(Killed):
        world.new_dispatcher().round()
    status = world.cluster.status(f"{job.id}-1")
    assert status is not None
    assert not status.ended

    world.store.request_resume(job.id)
    world.rounds(job)
    assert world.cluster.launched() == [(f"{job.id}-1", 1), (f"{job.id}-2", 1)]
    assert world.cluster.status(f"{job.id}-1") is None


# Preempting


def test_an_elastic_job_makes_room_and_goes_on_smaller(slow: World) -> None:
    elastic = slow.running(resources=ELASTIC)
    head = slow.create()

    slow.round()
    stopping = slow.look(elastic)
    assert (stopping.state, stopping.reason) == (State.PREEMPTING, f"makes room for job {head.id}")
    waiting = slow.rounds(head)
    assert (waiting.state, set(slow.cluster.stops)) == (State.QUEUED, {(f"{elastic.id}-1", 120.0)})
    assert waiting.reason == "needs 1 worker of 1 CPU; 0 CPUs free; others are making room for it"

    slow.cluster.save(f"{elastic.id}-1", 5)
    shrunk = slow.rounds(elastic)
    assert (shrunk.state, shrunk.attempt, shrunk.workers, shrunk.failures) == (State.STARTING, 2, 3, 0)
    assert slow.look(head).state is State.STARTING
    slow.train(elastic)
    slow.train(head)
    assert slow.rounds(elastic).state is State.RUNNING
    assert len(slow.cluster.launches) == 3


def test_an_elastic_job_that_is_nearly_done_is_left_alone(world: World) -> None:
    elastic = world.running(resources=ELASTIC)
    head = world.create()

    world.train(elastic, Progress(step=9, total_steps=10, epoch=1, eta_seconds=119))
    world.now += 1
    assert world.rounds(elastic).state is State.RUNNING
    world.train(elastic, Progress(step=5, total_steps=10, epoch=1, eta_seconds=121))
    world.now += 1
    assert world.rounds(elastic).attempt == 2
    assert world.look(head).state is State.STARTING


def test_an_elastic_job_grows_when_the_others_are_gone_but_not_soon(world: World) -> None:
    other = world.running(resources={"workers": 3})
    elastic = world.running(resources=ELASTIC)
    assert elastic.workers == 1
    world.finish(other)
    assert world.rounds(elastic).attempt == 1

    world.now += 11 * 60
    world.round()
    stopping = world.look(elastic)
    assert (stopping.state, stopping.reason) == (State.PREEMPTING, "grows from 1 to 4 workers")
    grown = world.rounds(elastic)
    assert (grown.attempt, grown.workers, grown.failures) == (2, 4, 0)


def test_a_resized_job_goes_on_with_what_was_asked_for(world: World) -> None:
    elastic = world.running(resources=ELASTIC)

    for number, workers in ((2, 2), (3, 3)):
        world.store.request_resize(elastic.id, workers)
        resized = world.rounds(elastic)
        assert (resized.attempt, resized.workers) == (number, workers)
        world.train(elastic)
        assert world.rounds(elastic).state is State.RUNNING
    assert world.look(elastic).failures == 0


def test_a_resize_to_what_it_has_stops_nothing(world: World) -> None:
    elastic = world.running(resources=ELASTIC)

    world.store.request_resize(elastic.id, 4)

    assert world.rounds(elastic) == world.look(elastic)
    assert world.cluster.stops == []


def test_a_preempted_job_whose_rank_dies_on_the_way_uses_up_no_retry(slow: World) -> None:
    elastic = slow.running(resources=ELASTIC, retries=0)
    slow.create()
    slow.round()
    assert slow.look(elastic).state is State.PREEMPTING

    slow.fail(elastic)

    again = slow.rounds(elastic)
    assert (again.state, again.attempt, again.failures) == (State.STARTING, 2, 0)
