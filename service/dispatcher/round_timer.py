"""Measures the running round of the dispatcher, which another thread watches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic


class RoundTimer:
    """Times one round after another."""

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._began: float | None = None

    @contextmanager
    def round(self) -> Iterator[None]:
        """Times what happens in the context."""
        self._began = self._clock()
        try:
            yield
        finally:
            self._began = None

    def seconds(self) -> float:
        """Returns how long the running round has taken so far; 0.0 between two rounds."""
        began = self._began
        return 0.0 if began is None else self._clock() - began
