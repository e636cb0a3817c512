"""A job's way through the scheduler, round by round. Interruptions: test_interrupted_rounds."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from service.backends.cluster import Launch, Node, Status
from service.backends.memory import FIRST_STEP
from service.dispatcher.dispatcher import Dispatcher
from service.jobs.job import Job, State
from service.queue.store import Store
from service.secrets import Secrets
from tests.service.world import World, error, killed
from training.protocol import Exit, ExitRecord, Order, Progress, Superseded
from training.spec import Resources


@pytest.fixture
def world(sqlite_store: Store, tmp_path: Path) -> World:
    return World(sqlite_store, tmp_path / "runs")


# A job's way


def test_a_job_goes_from_the_queue_to_its_end(world: World) -> None:
    job = world.create(resources={"workers": 2})

    world.round()
    starting = world.look(job)
    assert (starting.state, starting.attempt, starting.start) == (State.STARTING, 1, 1)
    assert (starting.workers, starting.reason) == (2, "starting on 2 workers")

    world.cluster.run(f"{job.id}-1", None)
    world.round()
    assert world.look(job).state is State.STARTING  # nothing is trained yet

    world.train(job)
    world.round()
    running = world.look(job)
    assert (running.state, running.reason, running.progress) == (State.RUNNING, "", FIRST_STEP)
    assert running.started_at is not None

    world.finish(job, weights_sha256="0123456789abcdef" * 4)
    world.round()
    done = world.look(job)
    assert (done.state, done.attempt, done.failures, done.error) == (State.SUCCEEDED, 1, 0, None)
    assert (running.weights_sha256, done.weights_sha256) == (None, "0123456789abcdef" * 4)
    assert done.finished_at is not None
    assert done.archived_at is not None
    assert world.results.endings == {world.run(job).run_id: "FINISHED"}
    assert world.cluster.releases == [f"{job.id}-1"]


def test_a_job_that_ends_between_two_looks_skips_running(world: World) -> None:
    job = world.starting()
    assert world.cluster.launches[0].code is None

    world.finish(job)
    world.round()

    assert world.look(job).state is State.SUCCEEDED


def test_a_job_has_not_succeeded_before_all_its_ranks_came_to_their_end(world: World) -> None:
    job = world.running(resources={"workers": 2})

    world.cluster.fail_partly(world.name(job), ExitRecord(rank=0, kind=Exit.FINISHED))
    world.rounds(job)
    assert world.look(job).state is State.RUNNING

    world.fail(job, killed(1))
    world.round()
    assert (world.look(job).state, world.look(job).start) == (State.RUNNING, 2)


def test_the_attempt_is_ordered_in_full(world: World) -> None:
    digest = world.store.put_code(b"an archive")
    job = world.starting(
        code=digest, resources={"workers": 2, "cpus_per_worker": 0.5, "gpus_per_worker": 0}, retries=3
    )

    (launch,) = world.cluster.launches

    assert launch == Launch(
        order=Order(
            attempt=f"{job.id}-1",
            start=1,
            spec=job.spec,
            ranks=(),
            world_size=2,
            folder=str(world.folder / job.id),
            checkpoints=f"s3://checkpoints/of-us/{job.id}",
            code=digest,
            mlflow_uri="http://mlflow.invalid",
            run_id=world.run(job).run_id,
        ),
        resources=Resources(workers=2, cpus_per_worker=0.5),
    )
    assert launch.code is not None
    assert launch.code() == b"an archive"
    assert launch.secrets is None


def test_variables_are_ordered_and_secrets_handed_out_on_demand_alone(world: World) -> None:
    Secrets.of(world.settings, world.store).put("TOKEN", "hush-hush-hush")
    world.starting(environment={"variables": {"A": "1"}, "secrets": ["TOKEN"]})

    (launch,) = world.cluster.launches

    assert launch.order.variables == {"A": "1"}
    assert launch.secrets is not None
    assert launch.secrets() == {"TOKEN": "hush-hush-hush"}
    assert "hush" not in repr(launch)
    assert "hush" not in repr(replace(launch.order, secrets=launch.secrets()))


def test_a_time_limit_counts_over_all_attempts(world: World) -> None:
    job = world.running(time_limit="1h", retries=3)
    assert world.cluster.launches[-1].order.seconds_left == 3600

    world.cluster.set_seconds(world.name(job), 600)
    world.fail(job, killed())
    world.round()
    assert world.look(job).ran_seconds == 600
    assert world.cluster.launches[-1].order.seconds_left == 3000

    world.train(job)
    world.cluster.set_seconds(world.name(job), 900)
    world.cluster.lose(world.name(job))
    world.rounds(job)
    assert world.after_backoff(job).attempt == 2
    assert world.cluster.launches[-1].order.seconds_left == 2100

    world.train(job)
    message = "it has run for 1h, its time limit; its last checkpoint is kept"
    world.fail(job, ExitRecord(rank=0, kind=Exit.TIMED_OUT, step=7, message=message))
    ended = world.rounds(job)
    assert (ended.state, ended.attempt) == (State.FAILED, 2)
    assert ended.reason.startswith(f"rank 0 was stopped at step 7: {message}")
    assert ended.error is not None
    assert ended.error["type"] == "TimeLimit"


def test_a_job_that_waits_for_longer_than_its_limit_is_cancelled(world: World) -> None:
    world.cluster.machines = []
    patient, hasty = world.create(), world.create(time_limit={"queue": "10s", "run": "1h"})
    world.round()
    world.now += 9.9
    world.round()
    assert world.look(hasty).state is State.QUEUED

    world.now += 0.1
    world.round()

    assert world.look(patient).state is State.QUEUED
    assert world.look(hasty).state is State.CANCELLED
    assert "its time limit in the queue (time_limit.queue)" in world.look(hasty).reason


def test_a_job_without_room_waits_and_says_why(world: World) -> None:
    first = world.starting(resources={"workers": 3})
    second = world.starting(resources={"workers": 2})

    assert second.state is State.QUEUED
    assert second.reason == "needs 2 workers of 1 CPU; 1 CPU free"

    world.finish(first)
    world.round()
    assert world.look(second).state is State.STARTING


def test_a_job_that_starts_says_what_it_waits_for(world: World) -> None:
    job = world.starting()

    world.cluster.set_message(world.name(job), "node-1 is still loading torch")
    world.round()

    assert world.look(job).reason == "starting on 1 worker: node-1 is still loading torch"


# Progress


def at(step: int, eta_seconds: float | None = None) -> Progress:
    return Progress(step=step, total_steps=100, epoch=0, eta_seconds=eta_seconds, metrics={"train_loss": 0.5})


def test_progress_is_written_at_most_once_a_second_and_at_the_end(world: World) -> None:
    job = world.running()

    for step in range(2, 12):
        world.train(job, at(step))
        world.round()
        world.now += 0.25
    assert world.look(job).progress == at(10)

    world.train(job, at(100))
    world.finish(job)
    world.round()
    assert world.look(job).progress == at(100)


def test_the_progress_of_all_jobs_is_one_transaction(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = [world.running() for _ in range(3)]
    writes: list[int] = []
    write = world.store.write_progress

    def counted(reports: Any) -> None:
        reports = list(reports)
        writes.append(len(reports))
        write(reports)

    monkeypatch.setattr(world.store, "write_progress", counted)
    for job in jobs:
        world.train(job, at(5))
    world.round()

    assert writes == [3]
    assert [world.look(job).progress for job in jobs] == [at(5)] * 3


# Servers that are away


def test_while_ray_is_away_jobs_wait_and_say_so(world: World) -> None:
    world.cluster.unreachable = True

    job = world.starting()
    world.round()

    assert (job.state, job.attempt) == (State.QUEUED, 0)
    assert job.reason == "waits: Ray is not reachable: the test made it so"
    world.cluster.unreachable = False
    world.round()
    assert world.look(job).state is State.STARTING
    assert world.look(job).reason == "starting on 1 worker"


def test_while_ray_is_away_a_running_job_is_left_alone(world: World) -> None:
    job = world.running()
    world.cluster.unreachable = True

    assert world.rounds(job) == job
    world.cluster.unreachable = False
    world.finish(job)
    world.round()
    assert world.look(job).state is State.SUCCEEDED


def test_a_launch_that_did_not_reach_ray_is_made_good(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    job = world.create()

    def away(_: Launch) -> None:
        world.cluster.unreachable = True
        world.cluster.nodes()

    with monkeypatch.context() as patch:
        patch.setattr(world.cluster, "launch", away)
        world.round()
        world.round()
    assert world.look(job).state is State.STARTING
    assert world.look(job).reason == "waits: Ray is not reachable: the test made it so"

    world.cluster.unreachable = False
    world.rounds(job)
    assert world.cluster.launched() == [(f"{job.id}-1", 1)]
    assert world.look(job).reason == "starting on 1 worker"


def test_a_scheduler_that_another_has_taken_over_from_ends(world: World) -> None:
    job = world.running()
    world.cluster.superseded = True

    with pytest.raises(Superseded):
        world.dispatcher.round()
    with pytest.raises(Superseded):
        world.dispatcher.run(threading.Event())

    assert world.look(job) == job


# Failures


def test_a_rank_that_dies_is_started_again_in_place_from_the_last_checkpoint(world: World) -> None:
    job = world.running(resources={"workers": 2}, retries=2)
    world.print(job, "epoch 1")

    world.fail(job, killed(1, step=5))
    world.round()

    again = world.look(job)
    headline = "rank 1 was killed by SIGKILL at step 5"
    said = f"{headline} (infrastructure); starting again from the last checkpoint (1 of 2 retries used)"
    assert (again.state, again.attempt, again.start, again.failures) == (State.RUNNING, 1, 2, 1)
    assert (again.reason, again.workers, again.restarts) == (said, 2, (headline,))
    assert world.cluster.launched() == [(f"{job.id}-1", 1), (f"{job.id}-1", 2)]
    assert world.cluster.launches[1].order.restarts == (headline,)
    assert world.cluster.releases == []
    assert world.log(job).read_text() == f"epoch 1\nsyncbn: {said}\n"

    world.train(job, FIRST_STEP)
    world.round()
    assert (world.look(job).state, world.look(job).reason) == (State.RUNNING, "")
    world.finish(job)
    world.round()
    assert world.look(job).state is State.SUCCEEDED


def test_a_log_that_cannot_be_written_keeps_no_job_from_starting_again(world: World) -> None:
    job = world.running()
    (world.folder / job.id).mkdir(parents=True)
    (world.folder / job.id / "logs").write_text("a file where a folder should be")

    world.fail(job)
    world.round()

    assert world.cluster.launched()[-1] == (f"{job.id}-1", 2)


def test_a_link_in_the_place_of_a_log_is_not_followed(world: World, tmp_path: Path) -> None:
    job = world.running()
    secret = tmp_path / "secret"
    secret.write_text("of the service")
    world.print(job, "")
    world.log(job).unlink()
    world.log(job).symlink_to(secret)

    world.fail(job)
    world.round()
    world.finish(job)
    world.round()

    assert secret.read_text() == "of the service"
    assert world.look(job).archived_at is not None
    assert world.results.artifacts[world.run(job).run_id].keys() == {"spec.yaml"}


@pytest.mark.parametrize("retries", [0, 2])
def test_retries_are_counted_over_all_attempts(world: World, retries: int) -> None:
    job = world.running(retries=retries)

    for number in range(retries + 1):
        if number % 2:
            world.cluster.lose(world.name(job))
        else:
            world.fail(job)
        world.rounds(job)
        world.after_backoff(job)

    failed = world.look(job)
    assert (failed.state, failed.failures) == (State.FAILED, retries)
    assert len(world.cluster.launches) == retries + 1


def test_a_lost_machine_takes_the_job_to_others(world: World) -> None:
    job = world.running(resources={"workers": {"min": 1, "max": 4}}, retries=1)
    world.cluster.machines = [Node(id="node-2", address="127.0.0.1", cpus=2, gpus=0)]

    world.cluster.lose(f"{job.id}-1")
    world.dispatcher.reconciler.reconcile()
    queued = world.look(job)
    assert (queued.state, queued.failures, queued.workers) == (State.QUEUED, 0, None)
    assert queued.reason.startswith("attempt 1 was lost: rank 0 was lost before the first step: its machine")
    assert queued.reason.endswith("; starts again from its checkpoint; this uses no retry")

    world.round()
    again = world.look(job)
    assert (again.state, again.attempt, again.start, again.restarts) == (State.STARTING, 2, 1, ())
    assert again.workers == 2
    assert world.cluster.releases == [f"{job.id}-1"]


def test_a_later_attempt_does_not_run_before_it_trains(world: World) -> None:
    job = world.running()
    world.cluster.lose(f"{job.id}-1")
    world.round()
    assert world.look(job).attempt == 2

    world.round()
    assert world.look(job).state is State.STARTING  # the progress in the row is the first attempt's

    world.train(job)
    world.round()
    assert world.look(job).state is State.RUNNING


def test_the_others_are_ended_once_a_rank_has_failed_and_all_could_say_what_they_know(world: World) -> None:
    job = world.running(resources={"workers": 2})

    world.cluster.fail_partly(f"{job.id}-1", error(0, lost_peer=True, step=3))
    world.round()
    assert world.cluster.ends == []
    world.now += 2
    world.round()
    assert world.cluster.ends == [f"{job.id}-1"]

    world.round()
    assert (world.look(job).start, world.look(job).failures) == (2, 1)


def test_an_attempt_lost_with_the_head_is_launched_again_under_its_name(world: World) -> None:
    job = world.running()

    world.cluster.forget(f"{job.id}-1")
    world.round()

    assert world.cluster.launched() == [(f"{job.id}-1", 1)] * 2
    assert (world.look(job).attempt, world.look(job).failures) == (1, 0)
    world.finish(job)
    world.round()
    assert world.look(job).state is State.SUCCEEDED


# Starts that take too long


def test_an_attempt_that_finds_no_place_in_time_is_tried_again(world: World) -> None:
    world.cluster.places = False
    job = world.starting(retries=1)
    world.cluster.set_message(world.name(job), "waits for 1 CPU")

    world.wait(299)
    assert world.look(job).attempt == 1
    world.wait(1)
    world.rounds(job)

    again = world.look(job)
    assert (again.state, again.attempt, again.failures) == (State.STARTING, 2, 1)
    assert world.cluster.releases == [f"{job.id}-1"]
    world.cluster.set_message(world.name(job), "waits for 1 CPU")
    world.wait(300)
    failed = world.rounds(job)
    assert failed.state is State.FAILED
    assert failed.reason == (
        "the attempt did not start within 300 s: waits for 1 CPU\n1 of 1 retry was used."
    )
    assert failed.error is not None
    assert failed.error["type"] == "StartTimeout"
    assert world.cluster.status(f"{job.id}-2") is None


def test_a_long_installation_is_no_start_that_hangs(world: World) -> None:
    job = world.starting()
    world.cluster.install(f"{job.id}-1")

    world.wait(3599)
    assert world.look(job).reason == "starting on 1 worker: installing requirements on node-1"
    assert (world.look(job).state, world.cluster.ends) == (State.STARTING, [])
    world.wait(1)
    assert world.cluster.ends == [f"{job.id}-1"]
    world.rounds(job)

    assert (world.look(job).state, world.look(job).failures) == (State.STARTING, 1)


def test_ranks_that_do_not_come_together_in_time_are_ended_and_tried_again(world: World) -> None:
    job = world.starting()

    world.wait(300)
    assert world.cluster.ends == [f"{job.id}-1"]
    world.rounds(job)

    again = world.look(job)
    assert (again.state, again.attempt, again.failures) == (State.STARTING, 2, 1)


def test_a_restart_in_place_has_its_own_time_to_start(world: World) -> None:
    job = world.running()
    world.wait(1_000)
    world.fail(job)
    world.round()
    world.wait(299)
    assert world.cluster.ends == []

    world.wait(1)
    assert world.cluster.ends == [f"{job.id}-1"]


def test_a_job_comes_to_its_end_where_nobody_ends_its_ranks(world: World) -> None:
    world.cluster.obeys = False
    job = world.starting(retries=3)

    world.wait(300)
    world.wait(59)
    assert world.look(job).state is State.STARTING
    world.wait(1)

    failed = world.look(job)
    assert failed.state is State.FAILED
    assert failed.reason.startswith("the attempt did not start within 300 s\nIt is not retried: ")
    assert world.cluster.launched() == [(f"{job.id}-1", 1)]
    world.cluster.obeys = True
    world.rounds(job)
    assert world.cluster.status(f"{job.id}-1") is None


def test_time_in_which_ray_was_away_is_held_against_no_start(world: World) -> None:
    job = world.starting()
    world.wait(200)
    world.cluster.unreachable = True
    world.wait(200)
    world.cluster.unreachable = False

    world.wait(299)
    assert world.cluster.ends == []
    assert world.look(job).attempt == 1


# Cancel


def test_a_starting_job_is_cancelled(world: World) -> None:
    job = world.starting()

    world.store.request_cancel(job.id)
    world.rounds(job)

    assert world.cluster.stops == [(f"{job.id}-1", 15.0)]
    assert world.look(job).state is State.CANCELLED
    assert world.results.endings == {world.run(job).run_id: "KILLED"}


def test_a_job_that_waits_for_its_place_is_cancelled_at_once(world: World) -> None:
    world.cluster.places = False
    job = world.starting()

    world.store.request_cancel(job.id)
    world.rounds(job)

    assert world.look(job).state is State.CANCELLED
    assert world.cluster.releases == [f"{job.id}-1"]


def test_a_running_job_is_cancelled_once_its_attempt_has_stopped(world: World) -> None:
    job = world.running()
    world.cluster.obeys = False  # it takes its time

    world.store.request_cancel(job.id)
    world.rounds(job, 3)
    assert world.look(job).state is State.RUNNING
    assert world.cluster.stops == [(f"{job.id}-1", 15.0)] * 3

    world.cluster.save(f"{job.id}-1", 4)
    world.round()
    assert world.look(job).state is State.CANCELLED
    assert world.look(job).reason == "cancelled while it ran"
    assert world.results.endings == {world.run(job).run_id: "KILLED"}


def test_a_cancel_comes_to_its_end_where_nobody_ends_the_ranks(world: World) -> None:
    job = world.running()
    world.cluster.obeys = False

    world.store.request_cancel(job.id)
    world.wait(20)
    assert world.cluster.ends == [f"{job.id}-1"]
    world.wait(60)

    assert world.look(job).state is State.CANCELLED
    assert set(world.cluster.ends) == {f"{job.id}-1"}
    world.cluster.obeys = True
    world.rounds(job)
    assert world.cluster.status(f"{job.id}-1") is None


@pytest.mark.parametrize("fails", [False, True])
def test_a_cancel_ends_an_attempt_that_starts_again(world: World, *, fails: bool) -> None:
    job = world.running()
    world.fail(job)
    world.round()
    assert world.look(job).start == 2

    world.store.request_cancel(job.id)
    if fails:
        world.fail(job)
    world.rounds(job)

    assert world.look(job).state is State.CANCELLED
    assert len(world.cluster.launches) == 2


def test_a_job_that_succeeds_before_the_stop_reaches_it_has_succeeded(world: World) -> None:
    job = world.running()

    world.store.request_cancel(job.id)
    world.finish(job)
    world.round()

    assert world.look(job).state is State.SUCCEEDED
    assert world.cluster.stops == []


def test_a_job_cancelled_in_the_queue_is_archived_without_ado(world: World) -> None:
    job = world.create(resources={"workers": 100}, training={"global_batch_size": 512})
    world.round()
    world.store.request_cancel(job.id)
    world.round()

    assert world.look(job).archived_at is not None
    assert world.results.endings == {}


# Strays


def launch_of(job: Job, number: int) -> Launch:
    """One that no row names."""
    order = Order(attempt=f"{job.id}-{number}", spec=job.spec, ranks=(), world_size=1, folder="/")
    return Launch(order=order, resources=Resources())


@pytest.mark.parametrize("phase", ["placing", "starting", "running", "ended"])
def test_an_attempt_that_no_row_names_is_ended_and_gives_back_its_place(world: World, phase: str) -> None:
    job = world.running()
    world.cluster.places = phase != "placing"
    world.cluster.launch(launch_of(job, 7))
    if phase == "running":
        world.cluster.run(f"{job.id}-7")
    elif phase == "ended":
        world.cluster.finish(f"{job.id}-7")

    world.rounds(job, 2)

    assert world.cluster.status(f"{job.id}-7") is None
    assert world.cluster.releases == [f"{job.id}-7"]
    assert world.look(job) == job


def test_a_job_waits_until_its_last_attempt_has_ended(world: World) -> None:
    job = world.create()
    world.cluster.obeys = False
    world.cluster.launch(launch_of(job, 3))

    world.round()
    assert world.look(job).state is State.QUEUED
    world.round()
    assert world.look(job).reason == "waits: its last attempt has not ended yet"

    world.cluster.obeys = True
    world.rounds(job)
    assert world.look(job).state is State.STARTING


# Bugs


def test_an_unexpected_exception_in_one_job_holds_up_no_other(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bad, good = world.running(), world.running()
    attempts = world.cluster.attempts

    class Broken:
        start = 1

        @property
        def ended(self) -> bool:
            raise ZeroDivisionError("a bug")

    def broken() -> dict[str, Status | Broken]:
        return {**attempts(), f"{bad.id}-1": Broken()}

    monkeypatch.setattr(world.cluster, "attempts", broken)
    world.finish(good)
    world.dispatcher.round()

    assert world.look(good).state is State.SUCCEEDED
    assert world.look(bad) == bad
    assert bad.id in caplog.text
    assert "a bug" in caplog.text


def test_an_unexpected_exception_does_not_end_the_loop(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    job, stop, asked = world.create(), threading.Event(), []
    nodes, launch = world.cluster.nodes, world.cluster.launch

    def broken_at_first() -> list[Node]:
        asked.append(1)
        if len(asked) == 1:
            raise ZeroDivisionError("a bug")
        return nodes()

    def launched(ordered: Launch) -> None:
        launch(ordered)
        stop.set()

    monkeypatch.setattr(world.cluster, "nodes", broken_at_first)
    monkeypatch.setattr(world.cluster, "launch", launched)
    world.dispatcher.run(stop)

    assert world.look(job).state is State.STARTING


# The loop, with all its threads


def test_the_loop_takes_a_job_to_its_end(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    job, stop = world.create(), threading.Event()
    world.print(job, "")
    cluster, mark_archived = world.cluster, world.store.mark_archived

    def archived(ended: Job) -> bool:
        marked = mark_archived(ended)
        stop.set()
        cluster.wake()
        return marked

    monkeypatch.setattr(world.store, "mark_archived", archived)
    launch = cluster.launch

    def launch_and_finish(ordered: Launch) -> None:
        launch(ordered)
        cluster.run(ordered.name)
        cluster.finish(ordered.name)

    monkeypatch.setattr(cluster, "launch", launch_and_finish)
    Dispatcher(world.settings, world.store, cluster, world.results).run(stop)

    assert world.look(job).state is State.SUCCEEDED
    assert world.results.endings == {world.run(job).run_id: "FINISHED"}


def test_an_end_is_acted_upon_at_once_and_steps_are_not(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, stop, waits = world.running(), threading.Event(), threading.Event()
    cluster, rounds = world.cluster, []
    cluster.wait(0)  # forgets what has happened so far
    wait, release, reconcile = cluster.wait, cluster.release, world.dispatcher.reconciler.reconcile

    def counted() -> Any:
        rounds.append(1)
        return reconcile()

    def waiting(seconds: float) -> None:
        waits.set()
        wait(seconds)

    def released(name: str) -> None:
        release(name)
        stop.set()

    monkeypatch.setattr(world.dispatcher.reconciler, "reconcile", counted)
    monkeypatch.setattr(cluster, "wait", waiting)
    monkeypatch.setattr(cluster, "release", released)
    loop = threading.Thread(target=world.dispatcher.run, args=(stop,), kwargs={"poll_seconds": 3600.0})
    loop.start()
    waits.wait()
    for step in range(2, 10):
        world.train(job, at(step))
    world.finish(job)
    loop.join()

    assert world.look(job).state is State.SUCCEEDED
    assert len(rounds) == 2
