from __future__ import annotations

import threading

import pytest

from service.errors import Unavailable
from service.metrics import reading
from service.metrics.reading import Reading


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_fresh_value_is_not_read_again() -> None:
    clock, values = Clock(), iter(range(10))
    subject = Reading(lambda: next(values), clock)

    seen = []
    for clock.now in (0.0, 4.9, 5.1):
        subject.begin()
        seen.append(subject.value())

    assert seen == [0, 0, 1]


def test_what_fails_has_no_value_and_comes_back() -> None:
    clock, away = Clock(), [True]

    def read() -> int:
        if away[0]:
            raise Unavailable("MLflow", "away")
        return 7

    subject = Reading(read, clock)
    subject.begin()
    assert subject.value() is None

    away[0], clock.now = False, 6.0
    subject.begin()
    assert subject.value() == 7


def test_what_hangs_occupies_one_thread_and_delays_one_scrape(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "DEADLINE_SECONDS", 0.05)
    released, calls = threading.Event(), []

    def read() -> int:
        calls.append(1)
        released.wait(30)
        return 1

    subject = Reading(read)
    for _ in range(3):
        subject.begin()
        assert subject.value() is None
    assert calls == [1]

    released.set()
    monkeypatch.setattr(reading, "DEADLINE_SECONDS", 30.0)
    assert subject.value() == 1
