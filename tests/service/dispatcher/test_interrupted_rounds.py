"""Schedulers that die, meet or are overtaken at any call: every job comes to its one end all the same."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from service.backends.cluster import Launch, Node, Phase
from service.dispatcher.dispatcher import Dispatcher
from service.jobs.job import Job, State
from service.queue.store import Store
from tests.service.world import Killed, Tap, World, die, error, killed, tapped, work
from training.protocol import attempt_number

End = Callable[[World, str], None]


@pytest.fixture
def world(sqlite_store: Store, tmp_path: Path) -> World:
    return World(sqlite_store, tmp_path / "runs")


def dies(world: World, *, before: str) -> None:
    """A dispatcher that is killed before its first call of that name."""
    with pytest.raises(Killed):
        work(tapped(world, Tap(before, die)), world.results)


def test_a_dispatcher_that_died_before_the_launch_is_replaced(world: World) -> None:
    job = world.create()
    dies(world, before="launch")
    assert world.look(job).state is State.STARTING
    assert world.cluster.launches == []

    for _ in range(2):
        world.new_dispatcher().round()

    assert world.cluster.launched() == [(f"{job.id}-1", 1)]


def test_a_dispatcher_that_died_before_a_restart_in_place_is_replaced(world: World) -> None:
    job = world.running()
    world.fail(job)
    dies(world, before="launch")
    assert world.look(job).start == 2
    assert len(world.cluster.launches) == 1

    for _ in range(2):
        world.new_dispatcher().round()

    assert world.cluster.launched() == [(f"{job.id}-1", 1), (f"{job.id}-1", 2)]
    assert world.look(job).failures == 1


def test_a_cancel_before_the_launch_launches_nothing(world: World) -> None:
    job = world.create()
    dies(world, before="launch")

    world.store.request_cancel(job.id)
    world.dispatcher = world.new_dispatcher()
    world.rounds(job, 3)

    assert world.look(job).state is State.CANCELLED
    assert world.look(job).reason == "cancelled before it started"
    assert world.cluster.launches == []


def test_dispatchers_in_parallel_launch_every_job_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.cluster.machines = [Node(id="n", address="127.0.0.1", cpus=100, gpus=0)]
    launched: list[str] = []
    launch = world.cluster.launch

    def count(order: Launch) -> None:
        if world.cluster.status(order.name) is None:
            launched.append(order.name)
        launch(order)

    monkeypatch.setattr(world.cluster, "launch", count)
    jobs = [world.create() for _ in range(20)]
    world.dispatcher.round()
    world.dispatcher.runs.create_all()
    threads = [threading.Thread(target=world.new_dispatcher().round) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert set(launched) == {f"{job.id}-1" for job in jobs}
    assert {world.look(job).attempt for job in jobs} == {1}


# A moment chosen among all calls of a dispatcher


def finishes(world: World, name: str) -> None:
    world.cluster.finish(name)


def is_killed(world: World, name: str) -> None:
    world.cluster.fail(name, killed(step=5))


def raises(world: World, name: str) -> None:
    world.cluster.fail(name, error(step=5))


def loses_its_machine(world: World, name: str) -> None:
    world.cluster.lose(name)


class Story:
    """What becomes of a job's starts, and what must have become of the job in the end.

    ends: of its starts, in order. starts: those that must have been made, by attempt and number.
    command: what somebody asks for while the first start trains, instead of its end.
    """

    def __init__(
        self,
        *ends: End,
        state: State,
        starts: list[tuple[int, int]],
        lost: int = 0,
        command: Callable[[Store, str], object] | None = None,
    ) -> None:
        self.ends, self.state, self.starts, self.lost, self.command = ends, state, starts, lost, command

    def begin(self, world: World) -> Job:
        return world.create(retries=1, resources={"workers": {"min": 1, "max": 3}})

    def go_on(self, world: World, job: Job) -> None:
        """A moment passes in the cluster; the newest start trains, or ends if it did."""
        if world.look(job).state is State.PAUSED:
            world.store.request_resume(job.id)
        if not world.cluster.launches:
            return
        name = world.cluster.launches[-1].name
        status = world.cluster.status(name)
        number = len(world.cluster.launches)
        if status is None or status.ended:
            return
        if status.phase is Phase.STARTING:
            world.cluster.run(name)
        elif number == 1 and self.command:
            if world.look(job).state is State.RUNNING:
                self.command(world.store, job.id)
        else:
            self.ends[number - 1 - bool(self.command)](world, name)

    def play(self, world: World, job: Job, dispatcher: Dispatcher) -> None:
        for _ in range(30):
            work(dispatcher, world.results)
            if world.look(job).archived_at is not None and not world.cluster.attempts():
                return
            self.go_on(world, job)

    def check(self, world: World, job: Job) -> None:
        end = world.look(job)
        ended = {State.SUCCEEDED: "FINISHED", State.FAILED: "FAILED", State.CANCELLED: "KILLED"}
        launched = [(attempt_number(name), start) for name, start in world.cluster.launched()]
        assert (end.state, launched, end.failures) == (self.state, self.starts, self.lost)
        assert end.archived_at is not None
        assert end.run is not None
        assert world.results.endings == {end.run.run_id: ended[end.state]}
        assert {launch.order.run_id for launch in world.cluster.launches} == {end.run.run_id}
        assert world.cluster.attempts() == {}


STORIES = {
    "succeeds": Story(finishes, state=State.SUCCEEDED, starts=[(1, 1)]),
    "starts again and succeeds": Story(
        is_killed, finishes, state=State.SUCCEEDED, starts=[(1, 1), (1, 2)], lost=1
    ),
    "fails at the same step": Story(raises, raises, state=State.FAILED, starts=[(1, 1), (1, 2)], lost=1),
    "is lost and succeeds": Story(
        loses_its_machine, finishes, state=State.SUCCEEDED, starts=[(1, 1), (2, 1)]
    ),
    "is cancelled": Story(state=State.CANCELLED, starts=[(1, 1)], command=Store.request_cancel),
    "is paused and resumed": Story(
        finishes, state=State.SUCCEEDED, starts=[(1, 1), (2, 1)], command=Store.request_pause
    ),
    "is preempted": Story(
        finishes,
        state=State.SUCCEEDED,
        starts=[(1, 1), (2, 1)],
        command=lambda store, job_id: store.request_resize(job_id, 1),
    ),
}


WITHOUT_EFFECT = {
    *(
        "active",
        "attempts",
        "download",
        "get",
        "has_unended",
        "nodes",
        *("limit_waits", "open_runs", "queue_rows", "several"),
        "queue",
        "unarchived",
        "wake",
    ),
    *("note_all", "write_progress"),  # what users see; no scheduler acts upon it
}
"""Calls before which a death leaves what one before the next call leaves."""


def calls_in(world: World, story: Story) -> list[str]:
    job = story.begin(world)
    tap = Tap("never", die)
    story.play(world, job, tapped(world, tap))
    story.check(world, job)
    return tap.calls


@pytest.mark.parametrize("story", STORIES.values(), ids=STORIES)
def test_a_dispatcher_killed_before_any_call_brings_the_job_to_its_one_end(
    sqlite_store: Store, tmp_path: Path, story: Story
) -> None:
    for moment, name in enumerate(calls_in(World(sqlite_store, tmp_path), story)):
        if name in WITHOUT_EFFECT:
            continue
        world = World(sqlite_store, tmp_path)
        job = story.begin(world)

        with pytest.raises(Killed):
            story.play(world, job, tapped(world, Tap(moment, die)))
        story.play(world, job, world.dispatcher)

        story.check(world, job)


@pytest.mark.parametrize("story", STORIES.values(), ids=STORIES)
def test_two_dispatchers_that_meet_at_any_call_bring_the_job_to_its_one_end(
    sqlite_store: Store, tmp_path: Path, story: Story
) -> None:
    for moment in range(len(calls_in(World(sqlite_store, tmp_path), story))):
        world = World(sqlite_store, tmp_path)
        job = story.begin(world)

        story.play(world, job, tapped(world, Tap(moment, world.round)))

        story.check(world, job)


@pytest.mark.parametrize("story", ["starts again and succeeds", "is lost and succeeds"])
def test_a_cancel_at_any_call_leaves_nothing_running(sqlite_store: Store, tmp_path: Path, story: str) -> None:
    told = STORIES[story]
    for moment in range(len(calls_in(World(sqlite_store, tmp_path), told))):
        world = World(sqlite_store, tmp_path)
        job = told.begin(world)

        told.play(world, job, tapped(world, Tap(moment, partial(cancel_behind_its_back, world, job))))

        end = world.look(job)
        assert end.state in {State.CANCELLED, State.SUCCEEDED}
        assert end.archived_at is not None
        assert world.cluster.attempts() == {}
        assert len(world.results.endings) == len(world.results.jobs)


def cancel_behind_its_back(world: World, job: Job) -> None:
    """Another dispatcher sees the cancel first."""
    if not world.look(job).state.ended:
        world.store.request_cancel(job.id)
    world.round()
