"""Stopwatches: for how long this process has seen a condition hold, by a monotonic clock."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from time import monotonic


class Stopwatches:
    """One stopwatch per key. One that is not read between two sweeps is reset.

    They live in memory, so a restarted scheduler waits anew, and no step of the wall clock ends a job.
    """

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._since: dict[Hashable, float] = {}
        self._asked: set[Hashable] = set()

    def seconds(self, *key: Hashable) -> float:
        """Returns the seconds since the key was first read; starts its stopwatch on the first read."""
        now = self._clock()
        self._asked.add(key)
        return now - self._since.setdefault(key, now)

    def sweep(self) -> None:
        """Resets the stopwatches not read since the last sweep. Call it at the end of each round."""
        self._since = {key: since for key, since in self._since.items() if key in self._asked}
        self._asked.clear()

    def clear(self) -> None:
        """Resets all stopwatches, because the conditions could not be observed."""
        self._since.clear()
        self._asked.clear()
