from __future__ import annotations

import pytest

from service.circuit import HANGING_S, MOST_HANGING, REST_S, SLOW_S, Circuit
from service.errors import Unavailable


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def circuit(clock: Clock) -> Circuit:
    return Circuit("MLflow", at_once=20, clock=clock)


def fail(circuit: Circuit, clock: Clock, seconds: float) -> None:
    def call() -> None:
        with circuit.call():
            clock.now += seconds
            raise Unavailable("MLflow", "timed out")

    with pytest.raises(Unavailable, match=r"timed out$"):
        call()


def assert_open(circuit: Circuit) -> None:
    with pytest.raises(Unavailable, match="not tried again yet"), circuit.call():
        raise AssertionError("went through")


def test_after_a_slow_failure_others_fail_at_once_until_it_has_rested(circuit: Circuit, clock: Clock) -> None:
    fail(circuit, clock, SLOW_S)

    assert_open(circuit)
    clock.now += REST_S
    with circuit.call():
        assert_open(circuit)  # one probe at a time
    with circuit.call(), circuit.call():
        pass


def test_a_probe_that_fails_slowly_keeps_it_open(circuit: Circuit, clock: Clock) -> None:
    fail(circuit, clock, SLOW_S)
    clock.now += REST_S

    fail(circuit, clock, SLOW_S)

    assert_open(circuit)


@pytest.mark.parametrize("error", [Unavailable("MLflow", "refused"), ValueError("of the caller")])
def test_a_failure_that_costs_nobody_time_opens_nothing(circuit: Circuit, error: Exception) -> None:
    with pytest.raises(type(error)), circuit.call():
        raise error

    with circuit.call():
        pass


def test_while_many_calls_hang_no_more_are_tried(circuit: Circuit, clock: Clock) -> None:
    hanging = [circuit.call() for _ in range(MOST_HANGING)]
    for call in hanging:
        call.__enter__()
    clock.now += HANGING_S + 1

    with pytest.raises(Unavailable, match="have waited for over"), circuit.call():
        pass

    hanging[0].__exit__(None, None, None)
    with circuit.call():
        pass


def test_calls_at_the_same_time_are_bounded(circuit: Circuit) -> None:
    calls = [circuit.call() for _ in range(20)]
    for call in calls:
        call.__enter__()

    with pytest.raises(Unavailable, match="20 calls are under way already"), circuit.call():
        pass
