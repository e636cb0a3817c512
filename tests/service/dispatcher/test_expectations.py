"""When jobs are expected to start, as the scheduler writes it, and how far that was from the truth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from service.backends.memory import FIRST_STEP
from service.dispatcher import expectations
from service.dispatcher.expectations import EVERY_SECONDS
from service.dispatcher.figures import WRITE_SECONDS
from service.errors import Unavailable
from service.jobs import measures
from service.jobs.expected import ExpectedStart
from service.jobs.job import Job, State, utc_now
from service.queue.store import Store
from service.scheduling.estimates import FIRST, estimate
from tests.service.world import World

ALL = {"workers": 4}


@pytest.fixture
def world(store: Store, tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(store, tmp_path_factory.mktemp("runs"))


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], datetime]:
    """Sets the scheduler's time of day to so many seconds after the test began, and returns it."""
    begin = utc_now()

    def set_to(seconds: float) -> datetime:
        moment = begin + timedelta(seconds=seconds)
        monkeypatch.setattr(expectations, "utc_now", lambda: moment)
        return moment

    set_to(0)
    return set_to


def train(world: World, job: Job, eta: float) -> None:
    world.train(job, replace(FIRST_STEP, eta_seconds=eta))


def pass_time(world: World, seconds: float = EVERY_SECONDS) -> None:
    world.now += seconds
    world.round()


def expected(world: World, job: Job) -> ExpectedStart:
    found = world.look(job).expected
    assert found is not None
    return found


def test_the_head_is_expected_when_the_running_job_ends(
    world: World, at: Callable[[float], datetime]
) -> None:
    first = world.running(resources=ALL)
    train(world, first, 720)
    second, third = (world.create(name="another", resources=ALL) for _ in range(2))

    world.round()
    pass_time(world)

    moment = at(0) + timedelta(seconds=720)
    because = f"when job {first.id} ends"
    assert expected(world, second) == ExpectedStart(at=moment, because=because, first=moment)
    assert expected(world, third) == ExpectedStart(
        at=None, because=f"the length of job {second.id} is not known"
    )
    assert world.look(first).expected is None


def test_queued_jobs_take_as_long_as_jobs_of_their_name_scaled_by_their_epochs(
    world: World, at: Callable[[float], datetime]
) -> None:
    def like(epochs: int, name: str = "same") -> dict[str, Any]:
        return {"name": name, "resources": ALL, "training": {"max_epochs": epochs}}

    done = world.running(**like(2))
    world.cluster.set_seconds(world.name(done), 100.0)
    world.finish(done)
    world.round()
    assert world.look(done).state is State.SUCCEEDED
    running = world.running(**like(2, "other"))
    train(world, running, 10)
    longer, last = world.create(**like(6)), world.create(**like(1))

    world.round()
    pass_time(world)

    assert expected(world, longer).at == at(0) + timedelta(seconds=10)
    assert expected(world, last).at == at(0) + timedelta(seconds=310)
    assert expected(world, last).because == "after 1 job ahead of it"


def test_until_one_of_its_name_has_ended_one_that_trains_says_how_long_it_takes(
    world: World, at: Callable[[float], datetime]
) -> None:
    def like(epochs: int) -> dict[str, Any]:
        return {"name": "same", "resources": ALL, "training": {"max_epochs": epochs}}

    running = world.running(**like(2))
    world.cluster.set_seconds(world.name(running), 20.0)
    train(world, running, 80)
    longer, last = world.create(**like(6)), world.create(**like(1))

    world.round()
    pass_time(world)

    assert expected(world, longer).at == at(0) + timedelta(seconds=80)
    assert expected(world, last).at == at(0) + timedelta(seconds=80 + 300)


def test_a_time_limit_says_when_it_starts_at_the_latest(
    world: World, at: Callable[[float], datetime]
) -> None:
    first = world.running(resources=ALL, time_limit={"run": 3600})
    world.cluster.set_seconds(world.name(first), 600.0)
    second = world.create(resources=ALL)

    world.round()
    pass_time(world)

    found = expected(world, second)
    assert (found.at, found.at_latest) == (at(0) + timedelta(seconds=3000), True)


def test_a_wait_after_a_failure_has_an_end(world: World, at: Callable[[float], datetime]) -> None:
    job = world.running(retries=9)
    for _ in range(3):
        world.fail(job)
        world.rounds(job, 2)
        if world.look(job).state is State.QUEUED:
            break
        world.train(job)
    waits = world.look(job).backoff_seconds
    assert waits > EVERY_SECONDS

    pass_time(world)

    found = expected(world, job)
    assert found.because == "when its wait after a failure ends"
    assert found.at is not None
    assert 0 < (found.at - at(0)).total_seconds() <= waits


def test_only_notable_changes_are_written(world: World, at: Callable[[float], datetime]) -> None:
    first = world.running(resources=ALL)
    train(world, first, 1000)
    second = world.create(resources=ALL)
    world.round()
    pass_time(world)
    before = expected(world, second)

    at(10)
    train(world, first, 1080)  # 90 s later than it was: less than 10 % of what is left
    pass_time(world, 10)
    assert expected(world, second) == before

    train(world, first, 1200)
    pass_time(world)
    later = at(10) + timedelta(seconds=1200)
    assert expected(world, second) == replace(before, at=later)
    assert before.first == before.at


@pytest.mark.usefixtures("at")
def test_nothing_is_computed_while_nothing_changes(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = list[int]()
    real = estimate

    def counted(*args: Any, **more: Any) -> Any:
        calls.append(1)
        return real(*args, **more)

    monkeypatch.setattr(expectations, "estimate", counted)
    first = world.running(resources=ALL)
    train(world, first, 1000)
    world.create(resources=ALL)
    for _ in range(4):
        pass_time(world)
    computed = len(calls)
    assert computed > 0

    left = 1000.0
    for _ in range(5):
        left -= EVERY_SECONDS
        train(world, first, left)
        pass_time(world)
    assert len(calls) <= computed + 1

    train(world, first, 100)
    pass_time(world)
    assert len(calls) > computed


@pytest.mark.usefixtures("at")
def test_a_job_that_starts_or_leaves_the_queue_has_no_estimate_any_more(world: World) -> None:
    first = world.running(resources=ALL)
    train(world, first, 100)
    second, paused, cancelled = (world.create(resources=ALL) for _ in range(3))
    world.round()
    pass_time(world)
    assert all(world.look(job).expected is not None for job in (second, paused, cancelled))

    world.store.request_pause(paused.id)
    world.store.request_cancel(cancelled.id)
    world.finish(first)
    started = world.rounds(second)

    assert started.state is State.STARTING
    assert [world.look(job).expected for job in (second, paused, cancelled)] == [None] * 3
    world.store.request_resume(paused.id)
    assert world.look(paused).expected is None


def test_how_wrong_the_estimates_were_is_counted_at_the_start(
    world: World, at: Callable[[float], datetime]
) -> None:
    first = world.running(resources=ALL)
    train(world, first, 100)
    second = world.create(resources=ALL)
    world.round()
    pass_time(world)
    train(world, first, 150)
    pass_time(world)

    at(160)
    world.finish(first)
    world.rounds(second)
    world.now += WRITE_SECONDS
    world.dispatcher.figures.write()

    name = f"{measures.START_ERROR}_sum"
    found = {each.labels["estimate"]: each.value for each in world.store.totals() if each.name == name}
    assert found == {"first": pytest.approx(60.0), "last": pytest.approx(10.0)}


def test_another_scheduler_goes_on_with_what_is_written(
    world: World, at: Callable[[float], datetime]
) -> None:
    first = world.running(resources=ALL)
    train(world, first, 100)
    second = world.create(resources=ALL)
    world.round()
    pass_time(world)
    before = expected(world, second)

    world.dispatcher = world.new_dispatcher()
    train(world, first, 300)
    world.round()
    pass_time(world)

    assert expected(world, second) == replace(before, at=at(0) + timedelta(seconds=300))


@pytest.mark.usefixtures("at")
def test_a_job_that_others_have_pushed_back_too_far_loses_its_estimate(world: World) -> None:
    first = world.running(resources=ALL)
    train(world, first, 100)
    second = world.create(resources=ALL)
    world.round()
    pass_time(world)
    assert expected(world, second).at is not None

    for _ in range(FIRST):
        world.create(resources=ALL, priority=1)
    world.round()
    pass_time(world)

    assert world.look(second).expected is None


@pytest.mark.usefixtures("at")
def test_a_database_that_does_not_answer_costs_no_round(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = world.running(resources=ALL)
    train(world, first, 100)
    second = world.create(resources=ALL)

    def away(*_: object) -> None:
        raise Unavailable("the database", "is away")

    with monkeypatch.context() as patch:
        patch.setattr(Store, "write_expected", away)
        world.round()
        pass_time(world)
    assert world.look(second).expected is None
    assert world.look(second).reason.startswith("needs 4 workers")

    pass_time(world)
    assert expected(world, second).at is not None
