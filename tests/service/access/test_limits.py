from __future__ import annotations

from service.access.limits import Limits


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_key_may_send_for_ten_seconds_at_once_and_then_at_its_rate() -> None:
    clock = Clock()
    limits = Limits(2, 1e9, clock)

    assert [limits.admit("ada") for _ in range(20)] == [0] * 20
    assert limits.admit("ada") == 1
    assert limits.admit("bob") == 0
    clock.now += 1
    assert [limits.admit("ada") for _ in range(3)] == [0, 0, 1]


def test_a_large_body_passes_and_has_to_be_paid_for() -> None:
    clock = Clock()
    limits = Limits(1000, 100, clock)

    assert limits.admit("ada") == 0
    limits.received("ada", 3000)
    assert limits.admit("ada") == 21
    clock.now += 21
    assert limits.admit("ada") == 0


def test_a_refused_request_does_not_count() -> None:
    clock = Clock()
    limits = Limits(1, 1e9, clock)
    for _ in range(1000):
        limits.admit("ada")

    clock.now += 1

    assert limits.admit("ada") == 0
