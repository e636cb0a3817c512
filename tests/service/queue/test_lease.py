"""The scheduler's row, over both databases."""

from __future__ import annotations

from dataclasses import replace

import pytest
from sqlalchemy import text

from service.backends.cluster import Node
from service.dispatcher.process import SilenceTimer, may_take_over
from service.errors import Unavailable
from service.queue import lease
from service.queue.lease import SchedulerRow, check_heard, machines
from service.queue.store import Store
from tests.service.queue.test_store import at_once

NODES = (Node(id="a", address="10.0.0.1", cpus=4, gpus=0.5), Node(id="b", address="10.0.0.2", cpus=2, gpus=0))


def row_of(store: Store) -> SchedulerRow:
    row = store.scheduler()
    assert row is not None
    return row


def take_over(store: Store, holder: str = "one") -> int:
    number = store.take_over(store.scheduler(), holder)
    assert number is not None
    return number


def test_the_first_scheduler_makes_the_row(store: Store) -> None:
    assert store.scheduler() is None

    assert store.take_over(None, "pid 7 on here") == 1

    row = row_of(store)
    assert (row.number, row.beat, row.holder, row.nodes, row.problem) == (1, 0, "pid 7 on here", (), "")
    assert 0 <= row.silent_seconds < lease.SILENCE_SECONDS


def test_a_beat_says_what_there_is_and_counts_up(store: Store) -> None:
    number = take_over(store)

    assert store.beat(number, nodes=NODES, problem="")
    assert store.beat(number, nodes=[], problem="Ray is not reachable: gone")

    assert (row_of(store).beat, row_of(store).nodes) == (2, ())
    assert row_of(store).problem == "Ray is not reachable: gone"
    assert store.beat(number, nodes=NODES, problem="")
    assert (row_of(store).nodes, row_of(store).problem) == (NODES, "")


def test_who_takes_over_has_a_higher_number_and_the_other_one_hears_of_it(store: Store) -> None:
    first = take_over(store, "one")
    store.beat(first, nodes=NODES, problem="")

    second = take_over(store, "two")

    assert second == first + 1
    assert not store.beat(first, nodes=[], problem="")
    assert (row_of(store).holder, row_of(store).nodes) == ("two", NODES)  # until it has looked for itself
    store.step_down(first)
    assert not row_of(store).vacant
    assert store.beat(second, nodes=NODES, problem="")


def test_who_has_beaten_since_is_not_taken_over_from(store: Store) -> None:
    number = take_over(store)
    seen = store.scheduler()
    store.beat(number, nodes=[], problem="")

    assert store.take_over(seen, "two") is None
    assert store.beat(number, nodes=[], problem="")


def test_of_many_that_take_over_at_once_one_does(store: Store) -> None:
    for expected in (1, 2):
        seen = store.scheduler()

        def act(number: int, seen: SchedulerRow | None = seen) -> int | None:
            return store.take_over(seen, f"standby {number}")

        assert [number for number in at_once(8, act) if number is not None] == [expected]


def test_who_steps_down_leaves_the_row_vacant_and_a_late_beat_does_not_fill_it(store: Store) -> None:
    number = take_over(store)
    store.step_down(number)

    assert row_of(store).vacant
    assert not store.beat(number, nodes=[], problem="")
    assert row_of(store).vacant
    assert take_over(store, "two") == number + 1


def step_clock(store: Store, days: int) -> None:
    """As if the database's clock had been set: the last beat is this much older by it."""
    other = f"datetime('now', '{-days} day')"
    if store._engine.dialect.name == "postgresql":
        other = f"now() - interval '{days} day'"
    with store._engine.begin() as connection:
        connection.execute(text(f"UPDATE scheduler SET seen_at = {other}"))


def test_who_looks_for_the_first_time_learns_of_silence_by_the_databases_clock(
    store: Store, database_url: str
) -> None:
    take_over(store)
    step_clock(store, 1)
    newcomer = Store(database_url)

    assert 86_000 < row_of(newcomer).silent_seconds < 90_000
    with pytest.raises(
        Unavailable, match=r"no scheduler runs, the last one has not been heard from for 24 h"
    ):
        check_heard(newcomer.scheduler())
    newcomer.close()


@pytest.mark.parametrize("days", [-1, 1])
def test_a_step_of_the_databases_clock_changes_nothing(store: Store, days: int) -> None:
    """Neither the silence that is reported nor when a standby takes over."""
    number = take_over(store)
    before, standby = row_of(store), SilenceTimer()
    assert not may_take_over(before, standby)

    step_clock(store, days)
    assert 0 <= row_of(store).silent_seconds < 60
    assert not may_take_over(row_of(store), standby)

    store.beat(number, nodes=[], problem="")
    step_clock(store, days)
    assert 0 <= row_of(store).silent_seconds < 60
    assert not may_take_over(row_of(store), standby)


def test_silence_is_measured_between_two_looks_by_the_monotonic_clock() -> None:
    now = 100.0
    silence = lease.Silence(lambda: now)

    assert silence.seconds((1, 1), age=40.0) == 40.0
    now += 5
    assert silence.seconds((1, 1), age=-3600.0) == 45.0  # stepped back
    now += 5
    assert silence.seconds((1, 2), age=2.0) == 2.0
    now += 5
    assert silence.seconds((1, 3), age=3600.0) == 5.0  # stepped on: it came after the last look
    now += 5
    assert silence.seconds((2, 0), age=-3600.0) == 0.0
    now += 20
    assert silence.seconds((2, 0), age=-3580.0) == 20.0


def test_the_queues_clock_moves_with_the_beats_and_outlives_its_scheduler(store: Store) -> None:
    number = take_over(store)
    assert row_of(store).clock == 0
    store.beat(number, nodes=[], problem="", clock=12.5)
    store.beat(number, nodes=[], problem="")
    step_clock(store, 1)

    assert take_over(store, "another") == number + 1
    assert not store.beat(number, nodes=[], problem="", clock=99.0)

    assert row_of(store).clock == 12.5


def test_without_a_scheduler_it_is_said_how_to_start_one(store: Store) -> None:
    with pytest.raises(Unavailable, match=r"no scheduler runs.*syncbn serve --role scheduler"):
        check_heard(store.scheduler())
    take_over(store)

    silent = replace(row_of(store), silent_seconds=lease.SILENCE_SECONDS + 1)

    assert machines(row_of(store)) == ()
    for ask in (check_heard, machines):
        with pytest.raises(Unavailable, match=r"not been heard from for .*syncbn serve --role scheduler"):
            ask(silent)


def test_machines_are_not_known_while_ray_does_not_answer_the_scheduler(store: Store) -> None:
    store.beat(take_over(store), nodes=NODES, problem="Ray is not reachable: no route")

    assert check_heard(store.scheduler()).nodes == NODES
    with pytest.raises(Unavailable) as caught:
        machines(store.scheduler())
    assert str(caught.value) == "Ray is not reachable: no route"
