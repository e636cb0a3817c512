"""Keys that were shown and found a moment ago: not each request of a client looks its key up."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable

from service.access.keys import ApiKey

SECONDS = 1.0
"""How long a key is known. A key that another process revokes opens for as long."""

_MOST = 10_000


class KnownKeys:
    """The keys that have opened in the last second, by a digest of their texts. Not thread-safe."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._known: dict[bytes, tuple[float, ApiKey]] = {}

    def find(self, text: str) -> ApiKey | None:
        """Returns the key with this text; None if it has to be looked up."""
        until, key = self._known.get(_digest(text), (0.0, None))
        return key if key is not None and self._clock() < until else None

    def add(self, text: str, key: ApiKey) -> None:
        """Notes a key that has just opened."""
        if len(self._known) >= _MOST:
            self._known.clear()
        self._known[_digest(text)] = self._clock() + SECONDS, key

    def clear(self) -> None:
        """Forgets all: a key was revoked."""
        self._known.clear()


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()
