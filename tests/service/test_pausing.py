"""What the dispatcher makes of jobs that stop and go on later: paused, preempted, moved elsewhere."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from service import dispatcher
from service.jobs import Job, State, utc_now
from service.launch import Attempt, Node, Phase
from service.results import Progress
from service.store import Store
from tests.service.test_dispatcher import Killed, World
from training.failures import write_verdict

ELASTIC = {"workers": {"min": 1, "max": 4}}


@pytest.fixture
def world(sqlite_store: Store) -> World:
    """One machine of four CPUs."""
    return World(sqlite_store)


@pytest.fixture
def slow(world: World, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Attempts take their time to stop. The ids of those that were asked to."""
    stops: list[str] = []
    monkeypatch.setattr(world.cluster, "stop", stops.append)
    return stops


def said(type: str, **more: Any) -> str:
    return f"epoch 1\n{write_verdict({'type': type, 'message': '', 'rank': None, **more})}\n"  # type: ignore[typeddict-item]


def rounds(world: World, job: Job) -> Job:
    for _ in range(5):
        world.round()
    return world.look(job)


# Pausing


def test_a_paused_job_saves_itself_and_its_workers_go_to_others(world: World, slow: list[str]) -> None:
    job, waits = world.running(resources={"workers": 4}), world.create(resources={"workers": 4})

    world.store.request_pause(job.id)
    assert rounds(world, job).state is State.PAUSING
    assert set(slow) == {f"{job.id}-1"}
    assert world.look(waits).state is State.QUEUED

    world.finish(job, phase=Phase.STOPPED, text=said("Stopped", step=120))
    paused = rounds(world, job)
    assert (paused.state, paused.reason) == (State.PAUSED, "paused at step 120")
    assert (paused.failures, paused.finished_at) == (0, None)
    assert world.look(waits).state is State.STARTING
    run = world.run(job)
    assert world.results.artifacts[run.run_id] == {"logs/attempt-1.log": "epoch 1\n"}
    assert world.results.endings == {}


def test_a_resumed_job_goes_on_as_the_next_attempt_of_the_same_run(world: World) -> None:
    job = world.running()
    world.store.request_pause(job.id)
    rounds(world, job)

    world.store.request_resume(job.id)
    resumed = rounds(world, job)

    assert (resumed.state, resumed.attempt, resumed.failures) == (State.STARTING, 2, 0)
    assert world.run(resumed) == world.run(job)
    world.finish(job, 2)
    assert rounds(world, job).state is State.SUCCEEDED


def test_a_job_is_paused_before_it_has_trained(world: World) -> None:
    job = world.starting()

    world.store.request_pause(job.id)

    assert rounds(world, job).state is State.PAUSED
    assert world.cluster.stopped == [f"{job.id}-1"]


def test_a_held_job_does_not_start(world: World) -> None:
    job = world.create()
    world.store.request_pause(job.id)

    assert (rounds(world, job).state, world.cluster.attempts) == (State.PAUSED, {})


def test_a_job_that_succeeds_while_it_pauses_has_succeeded(world: World, slow: list[str]) -> None:
    first, second = world.running(), world.running()
    for job in (first, second):
        world.store.request_pause(job.id)
    rounds(world, first)
    assert slow

    world.finish(first)
    world.finish(second, phase=Phase.STOPPED, text=said("Succeeded"))

    assert rounds(world, first).state is State.SUCCEEDED
    assert rounds(world, second).state is State.SUCCEEDED


def test_a_job_that_fails_while_it_pauses_has_failed(world: World, slow: list[str]) -> None:
    job = world.running()
    world.store.request_pause(job.id)
    rounds(world, job)
    assert slow

    world.finish(job, phase=Phase.STOPPED, text=said("ValueError", step=3))

    failed = rounds(world, job)
    assert failed.state is State.FAILED
    assert failed.error is not None
    assert failed.error["step"] == 3


def test_a_job_whose_attempt_is_lost_while_it_pauses_is_paused(world: World, slow: list[str]) -> None:
    job, gone = world.running(retries=0), world.running(retries=0)
    for lost in (job, gone):
        world.store.request_pause(lost.id)
    rounds(world, job)
    assert slow

    world.lose(job)
    world.cluster.lose(f"{gone.id}-1")

    for lost in (job, gone):
        assert (rounds(world, lost).state, world.look(lost).failures) == (State.PAUSED, 0)


def test_a_pausing_job_that_is_cancelled_ends(world: World, slow: list[str]) -> None:
    job = world.running()
    world.store.request_pause(job.id)
    rounds(world, job)
    assert slow

    world.store.request_cancel(job.id)
    assert rounds(world, job).state is State.PAUSING
    world.finish(job, phase=Phase.STOPPED, text=said("Stopped", step=3))

    assert rounds(world, job).state is State.CANCELLED
    assert world.results.endings == {world.run(job).run_id: "KILLED"}


def test_a_paused_job_that_is_cancelled_keeps_its_log_when_ray_has_forgotten_it(world: World) -> None:
    job = world.running()
    world.cluster.print(f"{job.id}-1", "epoch 1\n")
    world.store.request_pause(job.id)
    rounds(world, job)
    world.cluster.lose(f"{job.id}-1")

    world.store.request_cancel(job.id)

    assert rounds(world, job).archived_at is not None
    run = world.run(job)
    assert world.results.endings == {run.run_id: "KILLED"}
    assert world.results.artifacts[run.run_id] == {"logs/attempt-1.log": "epoch 1\n"}


def test_an_attempt_that_was_submitted_into_a_pause_is_stopped_before_the_next_one_starts(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The dispatcher that submits it dies before it could look again."""
    job, submit = world.create(), world.cluster.submit

    def submit_late(attempt: Attempt) -> None:
        monkeypatch.setattr(world.cluster, "submit", submit)
        world.store.request_pause(job.id)
        world.round()
        assert world.look(job).state is State.PAUSED
        submit(attempt)
        raise Killed

    monkeypatch.setattr(world.cluster, "submit", submit_late)
    with pytest.raises(Killed):
        world.new_dispatcher().round()
    assert not world.cluster.statuses[f"{job.id}-1"].ended

    world.store.request_resume(job.id)
    world.round()
    assert list(world.cluster.attempts) == [f"{job.id}-1"]
    assert world.look(job).reason == "waits: attempt 1 has not ended yet"
    assert world.cluster.statuses[f"{job.id}-1"].ended
    world.round()
    assert list(world.cluster.attempts) == [f"{job.id}-1", f"{job.id}-2"]


# Preempting


def test_an_elastic_job_makes_room_and_goes_on_smaller(world: World, slow: list[str]) -> None:
    elastic = world.running(resources=ELASTIC)
    head = world.create()

    world.round()
    stopping = world.look(elastic)
    assert (stopping.state, stopping.reason) == (State.PREEMPTING, f"makes room for job {head.id}")
    waiting = rounds(world, head)
    assert (waiting.state, set(slow)) == (State.QUEUED, {f"{elastic.id}-1"})
    assert waiting.reason == "needs 1 worker of 1 CPU; 0 CPUs free; others are making room for it"

    world.finish(elastic, phase=Phase.STOPPED, text=said("Stopped", step=5))
    shrunk = rounds(world, elastic)
    assert (shrunk.state, shrunk.attempt, shrunk.workers, shrunk.failures) == (State.STARTING, 2, 3, 0)
    assert world.look(head).state is State.STARTING
    world.train(elastic, 2)
    world.train(head)
    assert rounds(world, elastic).state is State.RUNNING
    assert len(world.cluster.attempts) == 3


def test_an_elastic_job_that_is_nearly_done_is_left_alone(world: World) -> None:
    elastic = world.running(resources=ELASTIC)
    head = world.create()
    run_id = world.run(elastic).run_id

    world.results.progress[run_id] = Progress(step=9, total_steps=10, epoch=1, eta_seconds=119)
    assert rounds(world, elastic).state is State.RUNNING
    world.results.progress[run_id] = Progress(step=5, total_steps=10, epoch=1, eta_seconds=121)
    assert rounds(world, elastic).attempt == 2
    assert world.look(head).state is State.STARTING


def test_an_elastic_job_grows_when_the_others_are_gone_but_not_soon(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = world.running(resources={"workers": 3})
    elastic = world.running(resources=ELASTIC)
    assert elastic.workers == 1
    world.finish(other)
    assert rounds(world, elastic).attempt == 1

    monkeypatch.setattr(dispatcher, "utc_now", lambda: utc_now() + timedelta(minutes=11))
    world.round()
    stopping = world.look(elastic)
    assert (stopping.state, stopping.reason) == (State.PREEMPTING, "grows from 1 to 4 workers")
    grown = rounds(world, elastic)
    assert (grown.attempt, grown.workers, grown.failures) == (2, 4, 0)


def test_a_resized_job_goes_on_with_what_was_asked_for(world: World) -> None:
    elastic = world.running(resources=ELASTIC)

    for number, workers in ((2, 2), (3, 3)):
        world.store.request_resize(elastic.id, workers)
        resized = rounds(world, elastic)
        assert (resized.attempt, resized.workers) == (number, workers)
        world.train(elastic, number)
        assert rounds(world, elastic).state is State.RUNNING
    assert world.look(elastic).failures == 0


def test_a_resize_to_what_it_has_stops_nothing(world: World) -> None:
    elastic = world.running(resources=ELASTIC)

    world.store.request_resize(elastic.id, 4)

    assert rounds(world, elastic) == world.look(elastic)
    assert world.cluster.stopped == []


# Lost machines


def test_a_gang_that_no_longer_fits_starts_again_with_what_does(world: World) -> None:
    elastic = world.running(resources=ELASTIC, retries=1)
    world.cluster.machines = [Node(id="node-1", address="127.0.0.1", cpus=2, gpus=0)]

    world.finish(elastic, phase=Phase.FAILED, text=said("NodesLost"))

    again = rounds(world, elastic)
    assert (again.state, again.workers, again.failures) == (State.STARTING, 2, 1)
    world.finish(elastic, 2, phase=Phase.FAILED, text=said("NodesLost"))
    failed = rounds(world, elastic)
    assert failed.state is State.FAILED
    assert failed.error is not None
    assert failed.error["type"] == "NodesLost"
