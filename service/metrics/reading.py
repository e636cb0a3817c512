"""Reads what a scrape needs in other threads, each with a deadline, so that no part that hangs delays it."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from time import monotonic
from typing import Generic, TypeVar

from service.readiness import DEADLINE_SECONDS

T = TypeVar("T")

FRESH_SECONDS = 5.0
"""How long a value is good for: many scrapes cost as much as one."""


class Reading(Generic[T]):
    """The latest value that `read` has returned. At most one call of `read` is under way at a time."""

    def __init__(self, read: Callable[[], T], clock: Callable[[], float] = monotonic) -> None:
        self._read, self._clock = read, clock
        self._lock = threading.Lock()
        self._done = threading.Event()
        self._value: T | None = None
        self._read_at, self._begun_at = -math.inf, -math.inf
        self._under_way = False

    def begin(self) -> None:
        """Begins to read anew, unless the value is fresh or a call is under way. Does not block."""
        with self._lock:
            if self._under_way or self._clock() - self._read_at < FRESH_SECONDS:
                return
            self._under_way, self._begun_at = True, self._clock()
            self._done.clear()
        threading.Thread(target=self._run, name="metrics", daemon=True).start()

    def value(self) -> T | None:
        """Returns the value; None if the last call failed or has exceeded its deadline. Waits until then."""
        self._done.wait(max(self._begun_at + DEADLINE_SECONDS - self._clock(), 0.0))
        return self._value if self._done.is_set() else None

    def _run(self) -> None:
        value: T | None = None
        try:
            value = self._read()
        except Exception:  # shown as a part that is not up, whatever it is
            value = None
        finally:
            with self._lock:
                self._value, self._read_at, self._under_way = value, self._clock(), False
                self._done.set()
