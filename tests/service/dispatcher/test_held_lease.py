"""What a scheduler does outside the database: only while it holds the lease."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from service.backends.cluster import Cluster
from service.dispatcher.dispatcher import Dispatcher
from service.dispatcher.guarded import GuardedCluster, GuardedResults
from service.dispatcher.held_lease import HeldLease
from service.errors import Unavailable
from service.jobs.job import Run, State
from service.queue.lease import LEASE_SECONDS
from service.queue.store import Store
from tests.service.queue.test_lease import take_over
from tests.service.world import World
from training.protocol import Superseded


@pytest.fixture
def world(sqlite_store: Store, tmp_path: Path) -> World:
    return World(sqlite_store, tmp_path / "runs")


@pytest.fixture
def lease(world: World) -> HeldLease:
    return HeldLease(take_over(world.store), world.store, clock=lambda: world.now)


def scheduler(world: World, lease: HeldLease, *, now: bool = False) -> Dispatcher:
    guarded = GuardedCluster(world.cluster, lease), GuardedResults(world.results, lease)
    queues_clock = lease.now if now else None
    return Dispatcher(world.settings, lease.store, *guarded, clock=lambda: world.now, now=queues_clock)


def test_who_is_silent_for_its_lease_gives_no_orders_before_it_beats_again(
    world: World, lease: HeldLease
) -> None:
    world.create()
    world.dispatcher = scheduler(world, lease)
    world.dispatcher.round()
    world.dispatcher.runs.create_all()
    world.now += LEASE_SECONDS
    with pytest.raises(Unavailable, match="the lease has not been renewed for 6 s"):
        lease.check()

    world.dispatcher.round()
    assert world.cluster.launches == []

    lease.beaten(world.now)
    world.dispatcher.round()
    assert len(world.cluster.launches) == 1


def test_a_time_limit_in_the_queue_runs_while_a_scheduler_is_at_work(world: World, lease: HeldLease) -> None:
    """Whatever the wall clocks say, and however often another one takes over."""
    job = world.create(time_limit={"queue": "60s"})
    world.cluster.machines = []

    def act(number: int) -> None:
        held = HeldLease(number, world.store, clock=lambda: world.now)
        dispatcher = scheduler(world, held, now=True)
        dispatcher.round()
        world.now += 25
        held.beaten(world.now)
        dispatcher.round()
        assert world.store.beat(number, nodes=[], problem="", clock=held.now())
        world.now += 1000  # nobody is at work

    act(lease.number)
    act(take_over(world.store, "second"))
    assert world.look(job).state is State.QUEUED
    act(take_over(world.store, "third"))

    assert world.look(job).state is State.CANCELLED


ORDERS: dict[str, Callable[[Cluster], object]] = {
    "stop": lambda cluster: cluster.stop("a-1", seconds=1.0),
    "end": lambda cluster: cluster.end("a-1"),
    "release": lambda cluster: cluster.release("a-1"),
}


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
def test_each_order_looks_at_the_age_of_the_lease(
    world: World, lease: HeldLease, order: Callable[[Cluster], object]
) -> None:
    guarded = GuardedCluster(world.cluster, lease)
    order(guarded)
    world.now += LEASE_SECONDS

    with pytest.raises(Unavailable):
        order(guarded)


RUN = Run(experiment_id="1", run_id="run-1")

WRITES: dict[str, Callable[[GuardedResults], object]] = {
    "ensure_experiment": lambda results: results.ensure_experiment("e"),
    "ensure_run": lambda results: results.ensure_run(job_id="j1", name="n", experiment="e"),
    "upload": lambda results: results.upload(RUN, "spec.yaml", ""),
    "upload_file": lambda results: results.upload_file(RUN, "log", Path("nowhere")),
    "end": lambda results: results.end(RUN, "KILLED"),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_who_was_superseded_writes_nothing_to_mlflow(
    world: World, lease: HeldLease, write: Callable[[GuardedResults], object]
) -> None:
    assert take_over(world.store, "another") == 2

    with pytest.raises(Superseded):
        write(GuardedResults(world.results, lease))

    assert (world.results.jobs, world.results.endings) == ({}, {})


def test_a_run_that_was_created_too_late_is_ended_with_its_job(world: World, lease: HeldLease) -> None:
    """A scheduler that is suspended between its check and the request: the request comes all the same."""
    job = world.create()
    first, second = scheduler(world, lease), None
    create = world.results.ensure_run

    def late(**of: str) -> Run:
        nonlocal second
        world.results.ensure_run = create  # type: ignore[method-assign]
        number = take_over(world.store, "another")
        second = scheduler(world, HeldLease(number, world.store, clock=lambda: world.now))
        second.round()
        second.runs.create_all()
        return world.results._new_run(of["job_id"], of["experiment"])

    world.results.ensure_run = late  # type: ignore[method-assign,assignment]
    first.round()
    with pytest.raises(Superseded):
        first.runs.create_all()
    assert second is not None
    assert set(world.results.jobs) == {"run-1", "run-2"}
    assert world.run(job).run_id == "run-1"

    world.dispatcher = second
    world.round()
    world.train(job)
    world.finish(job)
    world.round()

    assert world.look(job).state is State.SUCCEEDED
    assert world.results.endings == {"run-1": "FINISHED", "run-2": "KILLED"}


def test_a_run_that_was_created_after_its_job_was_archived_is_ended(world: World, lease: HeldLease) -> None:
    """As above, and the job was cancelled and archived by the successor meanwhile."""
    job, first = world.create(), scheduler(world, lease)
    create = world.results.ensure_run

    def late(**of: str) -> Run:
        number = take_over(world.store, "another")
        successor = scheduler(world, HeldLease(number, world.store, clock=lambda: world.now))
        world.store.request_cancel(job.id)
        successor.round()
        assert successor.finisher.finish_all()
        return create(**of)  # type: ignore[arg-type]

    world.results.ensure_run = late  # type: ignore[method-assign,assignment]
    first.round()
    with pytest.raises(Superseded):
        first.runs.create_all()

    assert world.look(job).archived_at is not None
    assert world.results.endings == {"run-1": "KILLED"}


@pytest.mark.parametrize("thread", ["runs", "finisher"])
def test_the_threads_of_who_was_superseded_end(world: World, lease: HeldLease, thread: str) -> None:
    dispatcher = scheduler(world, lease)
    job = world.create()
    dispatcher.round()
    take_over(world.store, "another")
    if thread == "finisher":
        world.store.request_cancel(job.id)

    getattr(dispatcher, thread).run()  # returns

    assert (world.look(job).archived_at, world.results.jobs) == (None, {})
