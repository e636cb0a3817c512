"""A circuit breaker: while a server does not answer in time, callers fail at once and do not wait for it."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from service.errors import Unavailable

SLOW_S = 2.0
"""A failure that took at least this long opens the circuit. A faster one cost nobody time."""

REST_S = 2.0
HANGING_S = 5.0
MOST_HANGING = 8
"""Calls that may be under way for HANGING_S before further ones are refused: the API has 40 threads."""


class Circuit:
    """Lets calls to one server through, or refuses them at once with `Unavailable`. Thread-safe.

    It opens when a call has failed slowly. After REST_S seconds one call at a time goes through; the first
    that ends otherwise closes the circuit. It also refuses calls beyond `at_once` at the same time, and while
    many calls hang: one that never returns, as on a frozen network disk, cannot tell that it has failed.
    """

    def __init__(
        self, name: str, *, at_once: int | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._name, self._at_once, self._clock = name, at_once, clock
        self._lock, self._numbers = threading.Lock(), itertools.count()
        self._running: dict[int, float] = {}
        self._reason = ""
        self._rests_until = 0.0
        self._probe: int | None = None

    @contextmanager
    def call(self) -> Iterator[None]:
        """Encloses one call. Raises Unavailable at once if the call must not be tried now."""
        number = self._enter()
        reason = ""
        try:
            yield
        except Unavailable as error:
            reason = error.detail
            raise
        finally:
            self._leave(number, reason)

    def _enter(self) -> int:
        with self._lock:
            now = self._clock()
            if self._reason and (now < self._rests_until or self._probe in self._running):
                raise Unavailable(self._name, f"{self._reason} (not tried again yet)")
            if sum(now - begun > HANGING_S for begun in self._running.values()) >= MOST_HANGING:
                raise Unavailable(self._name, f"{MOST_HANGING} calls have waited for over {HANGING_S:g} s")
            if self._at_once is not None and len(self._running) >= self._at_once:
                raise Unavailable(self._name, f"{self._at_once} calls are under way already")
            number = next(self._numbers)
            self._running[number] = now
            if self._reason:
                self._probe = number
            return number

    def _leave(self, number: int, reason: str) -> None:
        with self._lock:
            now = self._clock()
            slow = now - self._running.pop(number) >= SLOW_S
            self._reason = reason if slow else ""
            self._rests_until = now + REST_S
