"""Exponential backoff: how long to wait before each retry."""

from __future__ import annotations


class Backoff:
    """Waits of `first` seconds, then twice as long each time, up to `longest`."""

    def __init__(self, first: float, longest: float) -> None:
        self._first, self._longest = first, longest
        self.reset()

    def reset(self) -> None:
        """Starts again with `first`, after a success."""
        self._next = self._first

    def next(self) -> float:
        """Returns the seconds to wait before the next try.

        >>> backoff = Backoff(1.0, 5.0)
        >>> [backoff.next() for _ in range(4)]
        [1.0, 2.0, 4.0, 5.0]
        """
        seconds, self._next = self._next, min(2 * self._next, self._longest)
        return seconds
