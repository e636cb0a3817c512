"""Runs and archives: a tracking server that refuses, is away or hangs, as the scheduler sees it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from service.backends.memory_tracking import FakeResults
from service.errors import Refused, Unavailable
from service.jobs.job import Job, Run, State
from service.queue.store import Store
from tests.service.world import Killed, Tap, World, die, tapped, work

NOT_ANSWERED = "waits for MLflow: it has not answered for 5 s"


@pytest.fixture
def world(sqlite_store: Store, tmp_path: Path) -> World:
    return World(sqlite_store, tmp_path / "runs")


def without_run(world: World) -> Job:
    """One that waits for a run of its own."""
    job = world.create()
    world.dispatcher.round()
    assert world.look(job).state is State.QUEUED
    return job


# Away


def test_a_job_waits_for_mlflow_and_starts_once_it_is_back(world: World) -> None:
    world.results.unreachable = True

    job = world.starting()
    world.round()
    waiting = world.look(job)
    assert (waiting.state, waiting.attempt) == (State.QUEUED, 0)
    assert waiting.reason == "waits for MLflow: the test made it so"
    assert not world.cluster.launches

    world.results.unreachable = False
    world.rounds(job, 2)
    assert world.look(job).state is State.STARTING


def test_a_job_that_was_paused_while_its_run_could_not_be_created_starts_once_mlflow_is_back(
    world: World,
) -> None:
    job, other = world.create(), world.create()

    def paused_and_resumed() -> None:
        world.store.request_pause(job.id)
        dispatcher.round()
        world.store.request_resume(job.id)

    dispatcher = tapped(world, Tap("ensure_experiment", paused_and_resumed))
    world.results.unreachable = True
    dispatcher.round()
    dispatcher.runs.create_all()
    world.results.unreachable = False
    dispatcher.runs.create_all()  # the other job shows that MLflow is back
    for _ in range(5):
        work(dispatcher, world.results)

    assert world.look(other).state is State.STARTING
    assert world.look(job).state is State.STARTING


def test_a_job_that_waits_for_mlflow_keeps_no_machine_from_one_that_has_a_run(world: World) -> None:
    resumed = world.running(resources={"workers": 4})
    world.store.request_pause(resumed.id)
    world.rounds(resumed)
    world.results.unreachable = True
    first = world.create(resources={"workers": 4}, priority=1)
    world.rounds(first)

    world.store.request_resume(resumed.id)
    world.rounds(resumed)

    assert world.look(resumed).state is State.STARTING
    assert world.look(first).reason.startswith("waits for MLflow: ")


def test_a_job_is_not_overtaken_while_its_run_is_being_made(world: World) -> None:
    resumed = world.running(resources={"workers": 4})
    world.store.request_pause(resumed.id)
    world.rounds(resumed)
    first = world.create(resources={"workers": 4}, priority=1)

    world.store.request_resume(resumed.id)
    world.dispatcher.round()
    world.dispatcher.runs.create_all()
    world.dispatcher.round()

    assert world.look(first).state is State.STARTING
    assert world.look(resumed).state is State.QUEUED


def test_many_jobs_that_wait_for_mlflow_are_asked_for_by_one(world: World) -> None:
    """Or they all would get runs when it is back, whether there is room for them or not."""
    world.results.unreachable = True
    jobs = [world.create(resources={"workers": 4}) for _ in range(10)]
    world.rounds(jobs[0])
    world.results.unreachable = False

    world.rounds(jobs[0])

    assert len(world.results.jobs) == 1
    assert world.look(jobs[0]).state is State.STARTING
    assert world.look(jobs[1]).reason == "needs 4 workers of 1 CPU; 0 CPUs free"


def test_whether_mlflow_is_back_is_seen_though_the_job_that_was_asked_for_is_gone(world: World) -> None:
    world.results.unreachable = True
    first, second = world.create(resources={"workers": 4}), world.create(resources={"workers": 4})
    world.rounds(first)
    world.store.request_cancel(first.id)
    world.rounds(second)
    world.results.unreachable = False

    world.rounds(second)

    assert world.look(second).state is State.STARTING


def test_a_job_whose_experiment_is_deleted_waits_and_holds_up_nobody(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    ensure_run = world.results.ensure_run

    def refuse(*, job_id: str, name: str, experiment: str, **more: Any) -> Run:
        if experiment == "gone":
            raise Refused("MLflow's experiment 'gone' is deleted")
        return ensure_run(job_id=job_id, name=name, experiment=experiment, **more)

    monkeypatch.setattr(world.results, "ensure_run", refuse)
    workers = {"workers": 4}
    waits = world.create(tracking={"experiment": "gone"}, resources=workers)
    starts = world.create(resources=workers)
    world.rounds(starts)

    assert world.look(waits).state is State.QUEUED
    assert world.look(waits).reason == "waits for MLflow: MLflow's experiment 'gone' is deleted"
    assert world.look(starts).state is State.STARTING


@pytest.mark.parametrize("error", [Unavailable("MLflow", "500"), TypeError("nonsense")])
def test_an_answer_that_one_job_alone_gets_holds_up_no_other(
    world: World, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    ensure_run = world.results.ensure_run

    def answer(*, job_id: str, name: str, experiment: str, **more: Any) -> Run:
        if experiment == "bad":
            raise error
        return ensure_run(job_id=job_id, name=name, experiment=experiment, **more)

    monkeypatch.setattr(world.results, "ensure_run", answer)
    bad, good = world.create(tracking={"experiment": "bad"}), world.create()
    world.rounds(good)

    assert world.look(bad).reason.startswith("waits for MLflow: ")
    assert world.look(good).state is State.STARTING


def test_while_mlflow_is_away_a_job_ends_and_is_archived_later_once(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    uploads: list[str] = []
    upload = world.results.upload_file

    def counted(run: Run, path: str, file: Path) -> None:
        upload(run, path, file)
        uploads.append(path)

    monkeypatch.setattr(world.results, "upload_file", counted)
    job = world.running()
    world.print(job, "bye\n")
    world.results.unreachable = True

    world.finish(job)
    world.rounds(job, 2)
    assert world.look(job).state is State.SUCCEEDED
    assert world.look(job).archived_at is None

    world.results.unreachable = False
    world.rounds(job, 3)
    assert world.look(job).archived_at is not None
    assert world.results.endings == {world.run(job).run_id: "FINISHED"}
    assert uploads == ["logs/attempt-1/rank-0.log"]


def test_the_logs_wait_for_a_storage_that_cannot_be_read(world: World) -> None:
    job = world.running()
    world.print(job, "bye\n")
    away = world.folder.rename(world.folder.with_suffix(".away"))
    world.finish(job)
    world.round()
    assert (world.look(job).state, world.look(job).archived_at) == (State.SUCCEEDED, None)

    away.rename(world.folder)
    world.round()
    assert world.results.artifacts[world.run(job).run_id]["logs/attempt-1/rank-0.log"] == "bye\n"


def test_a_run_that_somebody_deleted_stops_no_job(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise Refused("the run is deleted")

    job = world.running()
    world.print(job, "bye\n")
    for method in ("upload_file", "end"):
        monkeypatch.setattr(world.results, method, refuse)
    world.finish(job)
    world.round()

    assert world.look(job).state is State.SUCCEEDED
    assert world.store.unarchived() == []


# Hanging


class Hanging(FakeResults):
    """Nothing comes back before the test lets it."""

    def __init__(self) -> None:
        super().__init__()
        self.hangs, self.called, self.answers = False, threading.Event(), threading.Event()

    def _answer(self) -> None:
        if self.hangs:
            self.called.set()
            self.answers.wait()
        super()._answer()


@pytest.fixture
def hanging(sqlite_store: Store, tmp_path: Path) -> Iterator[World]:
    world = World(sqlite_store, tmp_path / "runs")
    world.results = Hanging()
    world.dispatcher = world.new_dispatcher()
    yield world
    world.results.answers.set()


@pytest.fixture
def in_thread(hanging: World) -> Iterator[Callable[[Callable[[], object]], threading.Thread]]:
    """Runs something that hangs, as the dispatcher's own threads do; returns once it has been called."""
    threads = []

    def start(work: Callable[[], object]) -> threading.Thread:
        assert isinstance(hanging.results, Hanging)
        hanging.results.hangs = True
        hanging.results.called.clear()
        threads.append(threading.Thread(target=work))
        threads[-1].start()
        assert hanging.results.called.wait(60)
        return threads[-1]

    yield start
    assert isinstance(hanging.results, Hanging)
    hanging.results.answers.set()
    for thread in threads:
        thread.join()


InThread = Callable[[Callable[[], object]], threading.Thread]


def test_an_mlflow_that_hangs_holds_up_no_job_that_has_a_run(hanging: World, in_thread: InThread) -> None:
    resources = {"workers": 2}
    ends, runs = hanging.running(resources=resources), hanging.running(resources=resources)
    waits = hanging.create(resources=resources)
    hanging.finish(ends)
    hanging.dispatcher.round()
    in_thread(hanging.dispatcher.finisher.finish_all)
    assert hanging.look(ends).state is State.SUCCEEDED

    making = in_thread(hanging.dispatcher.runs.create_all)
    hanging.dispatcher.round()
    assert hanging.look(waits).state is State.QUEUED
    hanging.now += 5
    hanging.dispatcher.round()
    assert hanging.look(waits).reason == NOT_ANSWERED
    hanging.cluster.lose(hanging.name(runs))
    hanging.dispatcher.round()

    assert (hanging.look(runs).state, hanging.look(runs).attempt) == (State.STARTING, 2)
    assert hanging.look(ends).archived_at is None
    assert isinstance(hanging.results, Hanging)
    hanging.results.answers.set()
    making.join()
    hanging.dispatcher.round()
    assert hanging.look(waits).state is State.STARTING


def test_the_loop_ends_though_mlflow_hangs(hanging: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.dispatcher.dispatcher._SECONDS_TO_LEAVE", 0.01)
    assert isinstance(hanging.results, Hanging)
    hanging.results.hangs = True
    job, stop = hanging.create(), threading.Event()
    loop = threading.Thread(target=hanging.dispatcher.run, args=(stop,))
    loop.start()
    assert hanging.results.called.wait(60)

    stop.set()
    loop.join()

    assert hanging.look(job).state is State.QUEUED


# Runs that would stay open


def test_a_run_that_is_made_for_a_job_cancelled_meanwhile_is_ended(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = without_run(world)
    ensure_run = world.results.ensure_run

    def late(*, job_id: str, name: str, experiment: str, **more: Any) -> Run:
        world.store.request_cancel(job.id)
        assert not world.dispatcher.finisher.finish_all()
        assert world.look(job).archived_at is None
        return ensure_run(job_id=job_id, name=name, experiment=experiment, **more)

    monkeypatch.setattr(world.results, "ensure_run", late)
    world.dispatcher.runs.create_all()
    world.round()

    assert world.results.endings == {world.run(job).run_id: "KILLED"}
    assert world.store.unarchived() == []


@pytest.mark.parametrize("call", ["set_experiment", "ensure_run", "upload", "set_run", "move"])
def test_a_run_whose_scheduler_is_killed_is_ended_with_its_cancelled_job(world: World, call: str) -> None:
    job = world.create()
    with pytest.raises(Killed):
        work(tapped(world, Tap(call, die)), world.results)
    created = set(world.results.jobs)

    world.store.request_cancel(job.id)
    world.rounds(job)

    assert created == ({"run-1"} if call in {"upload", "set_run", "move"} else set())
    assert world.results.endings == dict.fromkeys(created, "KILLED")
    assert world.look(job).archived_at is not None
    assert world.look(job).run_id == (created.pop() if created else None)


def test_a_job_that_is_retried_gets_the_run_that_its_killed_scheduler_had_created(world: World) -> None:
    job = world.create()
    with pytest.raises(Killed):
        work(tapped(world, Tap("set_run", die)), world.results)
    world.store.request_cancel(job.id)
    world.rounds(job)

    world.store.request_retry(job.id)
    world.rounds(job)

    assert world.look(job).state is State.STARTING
    assert list(world.results.jobs) == [world.run(job).run_id]
    assert world.results.endings == {}


def test_a_job_that_was_cancelled_before_its_turn_is_archived_though_mlflow_is_away(world: World) -> None:
    world.results.unreachable = True
    job = world.create()

    world.store.request_cancel(job.id)
    world.rounds(job)

    assert world.look(job).archived_at is not None


class Racing(FakeResults):
    """Looks for a run and makes one in two steps, as the real server must; `between` them happens this."""

    between: Callable[[], object] | None = None

    def ensure_run(self, *, job_id: str, name: str, experiment: str, **_more: Any) -> Run:  # noqa: ARG002
        known = self._runs.get(job_id)
        if self.between is not None:
            happen, self.between = self.between, None
            happen()
        return known or self._new_run(job_id, experiment)


def test_two_dispatchers_that_each_made_a_run_agree_on_one(world: World) -> None:
    job = world.create()
    world.results = racing = Racing()
    world.dispatcher = world.new_dispatcher()
    racing.between = world.round

    first = world.new_dispatcher()
    first.round()
    first.runs.create_all()
    first.round()

    assert len(racing.jobs) == 2
    (launch,) = world.cluster.launches
    assert launch.order.run_id == world.run(job).run_id
    (other,) = racing.jobs.keys() - {launch.order.run_id}
    assert racing.endings == {other: "KILLED"}


def test_a_job_that_waits_no_more_is_forgotten(world: World) -> None:
    job = without_run(world)
    world.store.request_cancel(job.id)
    world.dispatcher.round()

    assert world.dispatcher.runs.create_all()
    assert world.results.jobs == {}
