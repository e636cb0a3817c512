from __future__ import annotations

import dataclasses
import json
import threading
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar, cast

import pytest

from service.dispatcher import Dispatcher
from service.errors import Refused
from service.fakes import FakeCluster, FakeResults
from service.jobs import Job, State
from service.launch import Attempt, Node, Phase
from service.results import Progress, Run, Summary
from service.settings import Settings
from service.store import Store
from tests.service.examples import make_spec
from training.attempt import Order
from training.failures import write_verdict

SETTINGS = Settings(mlflow_url="http://mlflow.invalid", storage="/runs", checkpoints="s3://checkpoints/of-us")
STEP = Progress(step=1, total_steps=10, epoch=0, eta_seconds=None)
T = TypeVar("T")


class World:
    """A queue, a cluster and a tracking server, and one dispatcher that serves them."""

    def __init__(self, store: Store) -> None:
        self.store, self.cluster, self.results = store, FakeCluster(), FakeResults()
        self.dispatcher = self.new_dispatcher()

    def new_dispatcher(self) -> Dispatcher:
        return Dispatcher(SETTINGS, self.store, self.cluster, self.results)

    def create(self, **changes: Any) -> Job:
        return self.store.create_job(make_spec(**changes))[0]

    def round(self) -> None:
        self.dispatcher.round()

    def look(self, job: Job) -> Job:
        return self.store.get(job.id)

    def run(self, job: Job) -> Run:
        run = self.look(job).run
        assert run is not None
        return run

    def starting(self, **changes: Any) -> Job:
        job = self.create(**changes)
        self.round()
        return self.look(job)

    def running(self, **changes: Any) -> Job:
        job = self.starting(**changes)
        self.train(job)
        self.round()
        assert self.look(job).state is State.RUNNING
        return self.look(job)

    def train(self, job: Job, number: int = 1) -> None:
        self.cluster.set_phase(f"{job.id}-{number}", Phase.RUNNING)
        self.results.progress[self.run(job).run_id] = STEP

    def finish(self, job: Job, number: int = 1, phase: Phase = Phase.SUCCEEDED, text: str = "bye\n") -> None:
        self.cluster.print(f"{job.id}-{number}", text)
        self.cluster.set_phase(f"{job.id}-{number}", phase)

    def lose(self, job: Job, number: int = 1) -> None:
        """The attempt's driver was killed."""
        self.finish(job, number, Phase.FAILED, "epoch 1\n")


@pytest.fixture
def world(sqlite_store: Store) -> World:
    return World(sqlite_store)


# A job's way


def test_a_job_goes_from_the_queue_to_its_end(world: World) -> None:
    job = world.create(resources={"workers": 2})

    world.round()
    starting = world.look(job)
    assert (starting.state, starting.attempt, starting.workers) == (State.STARTING, 1, 2)
    assert starting.reason == "starting on 2 workers"

    world.cluster.set_phase(f"{job.id}-1", Phase.RUNNING)
    world.round()
    assert world.look(job).state is State.STARTING  # nothing is trained yet

    world.train(job)
    world.round()
    running = world.look(job)
    assert running.state is State.RUNNING
    assert running.started_at is not None

    world.finish(job, text="training\ndone\n")
    world.round()
    done = world.look(job)
    assert (done.state, done.attempt, done.failures, done.error) == (State.SUCCEEDED, 1, 0, None)
    assert done.finished_at is not None
    assert done.archived_at is not None
    run = world.run(job)
    assert world.results.endings == {run.run_id: "FINISHED"}
    assert world.results.artifacts[run.run_id] == {"logs/attempt-1.log": "training\ndone\n"}


def test_a_job_that_ends_between_two_looks_skips_running(world: World) -> None:
    job = world.starting()

    world.finish(job)
    world.round()

    assert world.look(job).state is State.SUCCEEDED


def test_a_later_attempt_does_not_run_before_its_driver_does(world: World) -> None:
    job = world.running()
    world.lose(job)
    world.round()
    assert world.look(job).attempt == 2

    world.round()
    assert world.look(job).state is State.STARTING  # the progress is the first attempt's

    world.train(job, 2)
    world.round()
    assert world.look(job).state is State.RUNNING


def test_the_attempt_is_ordered_in_full(world: World) -> None:
    digest = world.store.put_code(b"an archive")
    job = world.starting(code=digest, resources={"workers": 2}, retries=3)

    attempt = world.cluster.attempts[f"{job.id}-1"]

    order = json.loads(attempt.environment["SYNCBN_ATTEMPT"])
    assert set(order) == {field.name for field in dataclasses.fields(Order)}
    assert Order(**order) == Order(
        spec=job.spec,
        workers=2,
        name=job.id,
        storage="/runs",
        checkpoints="s3://checkpoints/of-us",
        retries=3,
        mlflow_uri="http://mlflow.invalid",
        run_id=world.run(job).run_id,
    )
    assert attempt.code == b"an archive"
    assert (attempt.job_id, attempt.number, attempt.workers) == (job.id, 1, 2)


def test_without_uploaded_code_none_is_sent(world: World) -> None:
    job = world.starting()

    assert world.cluster.attempts[f"{job.id}-1"].code is None


def test_a_job_without_room_waits_and_says_why(world: World) -> None:
    first = world.starting(resources={"workers": 3})
    second = world.starting(resources={"workers": 2})

    assert second.state is State.QUEUED
    assert second.reason == "needs 2 workers of 1 CPU; 1 CPU free"

    world.finish(first)
    world.round()
    assert world.look(second).state is State.STARTING


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


def test_while_ray_is_away_a_running_job_is_left_alone(world: World) -> None:
    job = world.running()
    world.cluster.unreachable = True

    for _ in range(5):
        world.round()

    assert world.look(job) == job
    world.cluster.unreachable = False
    world.finish(job)
    world.round()
    assert world.look(job).state is State.SUCCEEDED


def test_a_launch_that_did_not_reach_ray_is_made_good(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    job = world.create()

    def away(_: Attempt) -> None:
        world.cluster.unreachable = True
        world.cluster._answer()

    with monkeypatch.context() as patch:
        patch.setattr(world.cluster, "submit", away)
        world.round()
        world.round()
    assert world.look(job).state is State.STARTING
    assert world.look(job).reason == "starting: Ray is not reachable: the test made it so"

    world.cluster.unreachable = False
    world.round()
    assert list(world.cluster.attempts) == [f"{job.id}-1"]


def test_a_job_waits_for_mlflow_and_starts_once_it_is_back(world: World) -> None:
    world.results.unreachable = True

    job = world.starting()
    assert (job.state, job.attempt) == (State.QUEUED, 0)
    assert job.reason == "waits: MLflow is not reachable: the test made it so"
    assert not world.cluster.attempts

    world.results.unreachable = False
    world.round()
    assert world.look(job).state is State.STARTING


def test_a_job_with_a_deleted_experiment_waits_and_holds_up_nobody(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    ensure_run = world.results.ensure_run

    def refuse(*, job_id: str, name: str, experiment: str) -> Run:
        if experiment == "gone":
            raise Refused("MLflow's experiment 'gone' is deleted")
        return ensure_run(job_id=job_id, name=name, experiment=experiment)

    monkeypatch.setattr(world.results, "ensure_run", refuse)
    waits, starts = world.create(tracking={"experiment": "gone"}), world.create()
    world.round()

    assert world.look(waits).state is State.QUEUED
    assert world.look(waits).reason == "waits: MLflow's experiment 'gone' is deleted"
    assert world.look(starts).state is State.STARTING


def test_while_mlflow_is_away_a_job_ends_and_is_archived_later_once(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    uploads: list[str] = []
    upload = world.results.upload

    def counted(run: Run, path: str, text: str) -> None:
        upload(run, path, text)
        uploads.append(path)

    monkeypatch.setattr(world.results, "upload", counted)
    job = world.running()
    world.results.unreachable = True

    world.finish(job)
    world.round()
    world.round()
    assert world.look(job).state is State.SUCCEEDED
    assert world.look(job).archived_at is None

    world.results.unreachable = False
    for _ in range(3):
        world.round()
    assert world.look(job).archived_at is not None
    assert world.results.endings == {world.run(job).run_id: "FINISHED"}
    assert uploads == ["logs/attempt-1.log"]


def test_the_log_waits_for_a_ray_that_is_away(world: World) -> None:
    job = world.running()
    world.finish(job)
    world.results.unreachable = True
    world.round()
    world.results.unreachable, world.cluster.unreachable = False, True

    world.round()
    assert world.look(job).archived_at is None

    world.cluster.unreachable = False
    world.round()
    assert world.results.artifacts[world.run(job).run_id] == {"logs/attempt-1.log": "bye\n"}


def test_while_mlflow_is_away_a_lost_attempt_keeps_its_log(world: World) -> None:
    job = world.running()
    world.results.unreachable = True
    world.lose(job)
    world.round()
    world.results.unreachable = False
    world.round()

    assert world.look(job).attempt == 2
    assert world.results.artifacts[world.run(job).run_id] == {"logs/attempt-1.log": "epoch 1\n"}


@pytest.mark.parametrize("phase", [Phase.SUCCEEDED, Phase.FAILED])
def test_a_run_that_somebody_deleted_stops_no_job(
    world: World, phase: Phase, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise Refused("the run is deleted")

    job = world.running(retries=1)
    for method in ("upload", "end"):
        monkeypatch.setattr(world.results, method, refuse)
    world.finish(job, phase=phase)
    world.round()
    if phase is Phase.FAILED:
        assert world.look(job).attempt == 2
        world.finish(job, 2)
        world.round()

    assert world.look(job).state is State.SUCCEEDED
    assert world.store.unarchived() == []


# Failures


def test_a_verdict_is_final_and_says_everything(world: World) -> None:
    job = world.running(retries=3)
    verdict = write_verdict({"type": "ValueError", "message": "boom", "rank": 1})
    text = "".join(f"line {number}\n" for number in range(40))

    world.finish(job, phase=Phase.FAILED, text=f"{text}{verdict}\nRay says farewell\n")
    world.round()

    failed = world.look(job)
    tail = "\n".join(f"line {number}" for number in range(10, 40))
    assert (failed.state, failed.attempt, failed.failures) == (State.FAILED, 1, 0)
    assert failed.error == {"type": "ValueError", "message": "boom", "rank": 1, "log_tail": tail}
    assert failed.reason == f"ValueError on rank 1: boom\n\nlast lines of the log:\n{tail}"
    run = world.run(job)
    assert world.results.endings == {run.run_id: "FAILED"}
    assert world.results.artifacts[run.run_id] == {"logs/attempt-1.log": f"{text}Ray says farewell\n"}


def test_a_verdict_of_no_rank_names_none(world: World) -> None:
    job = world.starting()
    verdict = write_verdict({"type": "BuildError", "message": "model: no", "rank": None})

    world.finish(job, phase=Phase.FAILED, text=verdict)
    world.round()

    assert world.look(job).reason.startswith("BuildError: model: no\n")


def test_the_tail_ends_at_the_verdict_not_where_a_job_speaks_of_one(world: World) -> None:
    job = world.running()
    verdict = write_verdict({"type": "E", "message": "m", "rank": None})

    world.finish(job, phase=Phase.FAILED, text=f"I print syncbn-verdict myself\nlast\n{verdict}\nfarewell\n")
    world.round()

    error = world.look(job).error
    assert error is not None
    assert error["log_tail"] == "I print syncbn-verdict myself\nlast"


def test_an_attempt_that_died_without_a_word_is_tried_again(world: World) -> None:
    job = world.running(retries=1)

    world.lose(job)
    world.dispatcher._reconcile_all()
    queued = world.look(job)
    assert (queued.state, queued.failures, queued.workers) == (State.QUEUED, 1, None)
    assert queued.reason == "attempt 1 was lost; retry 1 of 1 from its checkpoint"
    assert world.results.artifacts[world.run(job).run_id] == {"logs/attempt-1.log": "epoch 1\n"}

    world.round()
    assert (world.look(job).state, world.look(job).attempt) == (State.STARTING, 2)
    second = json.loads(world.cluster.attempts[f"{job.id}-2"].environment["SYNCBN_ATTEMPT"])
    assert second["retries"] == 0
    assert second["run_id"] == world.run(job).run_id
    assert world.results.endings == {}


@pytest.mark.parametrize("retries", [0, 2])
def test_an_attempt_is_lost_no_more_often_than_there_are_retries(world: World, retries: int) -> None:
    job = world.running(retries=retries)

    for number in range(1, retries + 2):
        world.lose(job, number)
        world.cluster.set_phase(f"{job.id}-{number}", Phase.FAILED, "the driver was killed\nwith a trace")
        world.round()

    failed = world.look(job)
    assert (failed.state, failed.attempt, failed.failures) == (State.FAILED, retries + 1, retries)
    assert failed.error == {
        "type": "AttemptLost",
        "message": "the attempt's driver ended without a word and no retries are left. the driver was killed",
        "rank": None,
        "log_tail": "epoch 1",
    }
    assert list(world.cluster.attempts) == [f"{job.id}-{number}" for number in range(1, retries + 2)]


def test_somebody_elses_stop_loses_the_attempt_not_the_job(world: World) -> None:
    job = world.running()

    world.cluster.set_phase(f"{job.id}-1", Phase.STOPPED)
    world.round()

    assert (world.look(job).state, world.look(job).attempt) == (State.STARTING, 2)
    assert world.look(job).failures == 1


@pytest.mark.parametrize(
    "line",
    ['{"type": "ValueErr', "{}", "[1]", "null", '{"type": 1}'],
    ids=["torn", "empty", "list", "null", "part"],
)
def test_what_only_looks_like_a_verdict_is_none(world: World, line: str) -> None:
    bad, good = world.running(retries=0), world.running()

    world.finish(bad, phase=Phase.FAILED, text=f"syncbn-verdict {line}")
    world.finish(good)
    world.round()

    error = world.look(bad).error
    assert error is not None
    assert error["type"] == "AttemptLost"
    assert world.look(good).state is State.SUCCEEDED


# Cancel


def test_a_starting_job_is_cancelled(world: World) -> None:
    job = world.starting()

    world.store.request_cancel(job.id)
    world.round()
    world.round()

    assert world.cluster.stopped == [f"{job.id}-1"]
    assert world.look(job).state is State.CANCELLED
    assert world.results.endings == {world.run(job).run_id: "KILLED"}


def test_a_running_job_is_cancelled_once_its_attempt_has_stopped(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = world.running()
    stops: list[str] = []
    monkeypatch.setattr(world.cluster, "stop", stops.append)  # it takes its time

    world.store.request_cancel(job.id)
    for _ in range(3):
        world.round()
    assert world.look(job).state is State.RUNNING
    assert stops == [f"{job.id}-1"] * 3

    world.finish(job, phase=Phase.STOPPED, text="stopped in mid-epoch\n")
    world.round()
    assert world.look(job).state is State.CANCELLED
    assert world.look(job).reason == "cancelled while it ran"
    run = world.run(job)
    assert world.results.endings == {run.run_id: "KILLED"}
    assert world.results.artifacts[run.run_id] == {"logs/attempt-1.log": "stopped in mid-epoch\n"}


def test_a_job_that_succeeds_before_the_stop_reaches_it_has_succeeded(world: World) -> None:
    job = world.running()

    world.store.request_cancel(job.id)
    world.finish(job)
    world.round()

    assert world.look(job).state is State.SUCCEEDED
    assert world.cluster.stopped == []


def test_an_attempt_lost_after_a_cancel_is_not_tried_again(world: World) -> None:
    job = world.running()

    world.store.request_cancel(job.id)
    world.lose(job)
    world.round()

    assert world.look(job).state is State.CANCELLED
    assert list(world.cluster.attempts) == [f"{job.id}-1"]


def test_a_cancel_before_the_submission_launches_nothing(world: World) -> None:
    job = world.create()
    dies(world, before="submit")

    world.store.request_cancel(job.id)
    for _ in range(3):
        world.new_dispatcher().round()

    assert world.look(job).state is State.CANCELLED
    assert world.look(job).reason == "cancelled before it started"
    assert world.cluster.attempts == {}


def test_a_job_cancelled_in_the_queue_is_archived_without_ado(world: World) -> None:
    job = world.create(resources={"workers": 100, "cpus_per_worker": 1}, training={"global_batch_size": 512})
    world.round()
    world.store.request_cancel(job.id)
    world.round()

    assert world.look(job).archived_at is not None
    assert world.results.endings == {}


# Lost submissions, and several dispatchers


def test_a_submission_lost_with_the_head_is_made_again_under_the_same_id(world: World) -> None:
    job = world.running()

    world.cluster.lose(f"{job.id}-1")
    world.round()

    assert list(world.cluster.attempts) == [f"{job.id}-1"]
    assert (world.look(job).attempt, world.look(job).failures) == (1, 0)
    world.finish(job)
    world.round()
    assert world.look(job).state is State.SUCCEEDED


def test_a_dispatcher_that_died_before_the_submission_is_replaced(world: World) -> None:
    job = world.create()
    dies(world, before="submit")
    assert world.look(job).state is State.STARTING
    assert world.cluster.attempts == {}

    world.new_dispatcher().round()
    world.new_dispatcher().round()

    assert list(world.cluster.attempts) == [f"{job.id}-1"]


def test_dispatchers_in_parallel_launch_every_job_once(world: World) -> None:
    world.cluster.machines = [Node(id="n", address="127.0.0.1", cpus=100, gpus=0)]
    submitted: list[str] = []
    submit = world.cluster.submit

    def count(attempt: Attempt) -> None:
        if world.cluster.status(attempt.submission_id) is None:
            submitted.append(attempt.submission_id)
        submit(attempt)

    world.cluster.submit = count  # type: ignore[method-assign]
    jobs = [world.create() for _ in range(20)]
    dispatchers = [world.new_dispatcher() for _ in range(4)]
    threads = [threading.Thread(target=dispatcher.round) for dispatcher in dispatchers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert set(submitted) == {f"{job.id}-1" for job in jobs}
    assert {world.look(job).attempt for job in jobs} == {1}


# A moment chosen among all calls of a dispatcher


class Killed(BaseException):
    """As good as SIGKILL: nothing in the dispatcher may catch it."""


class Tap:
    """Passes calls on, counts them, and does something before the one of that number or name."""

    def __init__(self, moment: int | str, action: Callable[[], None]) -> None:
        self.moment, self.action = moment, action
        self.calls, self.done = 0, False

    def on(self, target: T) -> T:
        return cast(T, _Tapped(target, self))

    def call(self, name: str, method: Callable[..., Any], /, *args: Any, **options: Any) -> Any:
        number, self.calls = self.calls, self.calls + 1
        if self.moment in {number, name} and not self.done:
            self.done = True
            self.action()
        return method(*args, **options)


class _Tapped:
    def __init__(self, target: Any, tap: Tap) -> None:
        self._target, self._tap = target, tap

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._target, name)
        return lambda *args, **options: self._tap.call(name, method, *args, **options)


def die() -> None:
    raise Killed


def tapped(world: World, tap: Tap) -> Dispatcher:
    return Dispatcher(SETTINGS, tap.on(world.store), tap.on(world.cluster), tap.on(world.results))


def dies(world: World, *, before: str) -> None:
    """One round of a dispatcher that is killed before its first call of that name."""
    with pytest.raises(Killed):
        tapped(world, Tap(before, die)).round()


class Story:
    """What becomes of a job's attempts, and what must have become of the job in the end."""

    def __init__(
        self, *ends: Phase, state: State, lost: int = 0, wish: Callable[[Store, str], object] | None = None
    ) -> None:
        self.ends, self.state, self.lost, self.wish = ends, state, lost, wish

    def begin(self, world: World) -> Job:
        return world.create(retries=1, resources={"workers": {"min": 1, "max": 3}})

    def go_on(self, world: World, job: Job) -> None:
        """A moment passes in the cluster; the newest attempt trains, or ends if it did."""
        if world.look(job).state is State.PAUSED:
            world.store.request_resume(job.id)
        if not world.cluster.attempts:
            return
        number = max(attempt.number for attempt in world.cluster.attempts.values())
        name = f"{job.id}-{number}"
        phase = world.cluster.statuses[name].phase
        if phase is Phase.PENDING:
            world.cluster.set_phase(name, Phase.RUNNING)
            order = json.loads(world.cluster.attempts[name].environment["SYNCBN_ATTEMPT"])
            world.results.progress[order["run_id"]] = STEP
        elif phase is Phase.RUNNING and number == 1 and self.wish:
            self.wish(world.store, job.id)
        elif phase is Phase.RUNNING:
            world.finish(job, number, self.ends[number - 1])

    def play(self, world: World, job: Job, dispatcher: Dispatcher) -> None:
        for _ in range(20):
            dispatcher.round()
            if world.look(job).archived_at is not None:
                return
            self.go_on(world, job)

    def check(self, world: World, job: Job) -> None:
        end = world.look(job)
        ended = {State.SUCCEEDED: "FINISHED", State.FAILED: "FAILED", State.CANCELLED: "KILLED"}
        assert (end.state, end.attempt, end.failures) == (self.state, len(self.ends), self.lost)
        assert list(world.cluster.attempts) == [f"{job.id}-{n}" for n in range(1, len(self.ends) + 1)]
        assert end.archived_at is not None
        assert end.run is not None
        assert world.results.endings == {end.run.run_id: ended[end.state]}
        for attempt in world.cluster.attempts.values():
            assert json.loads(attempt.environment["SYNCBN_ATTEMPT"])["run_id"] == end.run.run_id


STORIES = {
    "succeeds": Story(Phase.SUCCEEDED, state=State.SUCCEEDED),
    "is lost and succeeds": Story(Phase.FAILED, Phase.SUCCEEDED, state=State.SUCCEEDED, lost=1),
    "is lost for good": Story(Phase.FAILED, Phase.STOPPED, state=State.FAILED, lost=1),
    "is cancelled": Story(Phase.STOPPED, state=State.CANCELLED, wish=Store.request_cancel),
    "is paused and resumed": Story(
        Phase.STOPPED, Phase.SUCCEEDED, state=State.SUCCEEDED, wish=Store.request_pause
    ),
    "is preempted": Story(
        Phase.STOPPED,
        Phase.SUCCEEDED,
        state=State.SUCCEEDED,
        wish=lambda store, job_id: store.request_resize(job_id, 1),
    ),
}


def calls_in(store: Store, story: Story) -> int:
    world = World(store)
    job = story.begin(world)
    tap = Tap("never", die)
    dispatcher = tapped(world, tap)
    story.play(world, job, dispatcher)
    story.check(world, job)
    return tap.calls


@pytest.mark.parametrize("story", STORIES.values(), ids=STORIES)
def test_a_dispatcher_killed_before_any_call_brings_the_job_to_its_one_end(
    sqlite_store: Store, story: Story
) -> None:
    for moment in range(calls_in(sqlite_store, story)):
        world = World(sqlite_store)
        job = story.begin(world)

        with pytest.raises(Killed):
            story.play(world, job, tapped(world, Tap(moment, die)))
        story.play(world, job, world.dispatcher)

        story.check(world, job)


@pytest.mark.parametrize("story", STORIES.values(), ids=STORIES)
def test_two_dispatchers_that_meet_at_any_call_bring_the_job_to_its_one_end(
    sqlite_store: Store, story: Story
) -> None:
    for moment in range(calls_in(sqlite_store, story)):
        world = World(sqlite_store)
        job = story.begin(world)

        story.play(world, job, tapped(world, Tap(moment, world.round)))

        story.check(world, job)


def test_a_cancel_at_any_call_leaves_nothing_running(sqlite_store: Store) -> None:
    story = STORIES["is lost and succeeds"]
    for moment in range(calls_in(sqlite_store, story)):
        world = World(sqlite_store)
        job = story.begin(world)

        story.play(world, job, tapped(world, Tap(moment, partial(cancel_behind_its_back, world, job))))

        end = world.look(job)
        assert end.state in {State.CANCELLED, State.SUCCEEDED}
        assert end.archived_at is not None
        assert all(status.ended for status in world.cluster.statuses.values())


def cancel_behind_its_back(world: World, job: Job) -> None:
    """Another dispatcher sees the cancel first."""
    if not world.look(job).state.ended:
        world.store.request_cancel(job.id)
    world.round()


class Racing(FakeResults):
    """Looks for a run and makes one in two steps, as the real server must; `between` them happens this."""

    between: Callable[[], None] | None = None

    def ensure_run(self, *, job_id: str, name: str, experiment: str) -> Run:  # noqa: ARG002
        known = self._runs.get(job_id)
        if self.between is not None:
            happen, self.between = self.between, None
            happen()
        return known or self._new_run(job_id, experiment)


def test_two_dispatchers_that_each_made_a_run_agree_on_one(world: World) -> None:
    job = world.create()
    world.results = racing = Racing()
    racing.between = world.new_dispatcher().round

    world.new_dispatcher().round()

    assert len(racing.jobs) == 2
    order = json.loads(world.cluster.attempts[f"{job.id}-1"].environment["SYNCBN_ATTEMPT"])
    assert order["run_id"] == world.run(job).run_id


# Bugs


def test_an_unexpected_exception_in_one_job_holds_up_no_other(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bad, good = world.running(), world.running()
    status = world.cluster.status

    def broken(name: str) -> Any:
        if name == f"{bad.id}-1":
            raise ZeroDivisionError("a bug")
        return status(name)

    monkeypatch.setattr(world.cluster, "status", broken)
    world.finish(good)
    world.round()

    assert world.look(good).archived_at is not None
    assert world.look(bad) == bad
    assert f"job {bad.id}" in caplog.text
    assert "a bug" in caplog.text


def test_an_unexpected_exception_does_not_end_the_loop(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    job, stop, asked = world.create(), threading.Event(), []
    nodes = world.cluster.nodes

    def broken_at_first() -> list[Node]:
        asked.append(1)
        if len(asked) == 1:
            raise ZeroDivisionError("a bug")
        stop.set()
        return nodes()

    monkeypatch.setattr(world.cluster, "nodes", broken_at_first)
    loop = threading.Thread(target=world.dispatcher.run, args=(stop,), kwargs={"seconds_between": 0.01})
    loop.start()
    loop.join(20)

    assert not loop.is_alive()
    assert world.look(job).state is State.STARTING


def test_a_tracking_server_that_talks_nonsense_stops_no_job(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: object) -> dict[str, Summary]:
        raise TypeError("a progress of another version")

    job = world.running()
    monkeypatch.setattr(world.results, "summaries", broken)
    world.finish(job)
    world.round()

    assert world.look(job).state is State.SUCCEEDED
