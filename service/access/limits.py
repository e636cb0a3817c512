"""How many requests, and bytes in their bodies, a key may send: one pair of token buckets for each key."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

SECONDS_AT_ONCE = 10.0
"""What a bucket holds: what flows in during this time."""


class Bucket:
    """Lets `rate` units a second through, and at once what has collected. Not thread-safe.

    What is taken may exceed what is left: the size of a body is known when it has arrived. Then the bucket
    is in debt, and nothing passes until that is paid.
    """

    def __init__(self, rate: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._clock = rate, clock
        self._left = self._capacity = rate * SECONDS_AT_ONCE
        self._at = clock()

    def wait(self) -> float:
        """Returns the seconds until something may pass; 0.0 for now."""
        now = self._clock()
        self._left = min(self._capacity, self._left + (now - self._at) * self._rate)
        self._at = now
        return max(0.0, (1.0 - self._left) / self._rate)

    def take(self, amount: float) -> None:
        """Takes the amount, whatever is left."""
        self._left -= amount


class Limits:
    """The buckets of all keys, in the memory of one process. Not thread-safe."""

    def __init__(
        self, requests_a_second: float, bytes_a_second: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._rates, self._clock = (requests_a_second, bytes_a_second), clock
        self._buckets: dict[str, tuple[Bucket, Bucket]] = {}

    def admit(self, credential: str) -> int:
        """Counts a request and returns 0, or the whole seconds after which to send it again."""
        requests, content = self._of(credential)
        if (seconds := max(requests.wait(), content.wait())) > 0:
            return math.ceil(seconds)
        requests.take(1)
        return 0

    def received(self, credential: str, size: int) -> None:
        """Counts bytes of a body that have arrived."""
        self._of(credential)[1].take(size)

    def _of(self, credential: str) -> tuple[Bucket, Bucket]:
        if credential not in self._buckets:
            requests, content = (Bucket(rate, self._clock) for rate in self._rates)
            self._buckets[credential] = requests, content
        return self._buckets[credential]
