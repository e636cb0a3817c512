"""For how long something has been so, as far as this process has seen. By a monotonic clock."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from time import monotonic


class Stopwatches:
    """One for each key that is asked for; one that is not asked for between two sweeps starts anew.

    So a scheduler that is restarted waits anew, and no step of the wall clock ends a job.
    """

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._since: dict[Hashable, float] = {}
        self._asked: set[Hashable] = set()

    def seconds(self, *key: Hashable) -> float:
        """Since the first time that this was asked."""
        now = self._clock()
        self._asked.add(key)
        return now - self._since.setdefault(key, now)

    def sweep(self) -> None:
        """At the end of a look at everything: what was not asked for is not so any more."""
        self._since = {key: since for key, since in self._since.items() if key in self._asked}
        self._asked.clear()

    def clear(self) -> None:
        """Nobody could look: all of them start anew."""
        self._since.clear()
        self._asked.clear()
