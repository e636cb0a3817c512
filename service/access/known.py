"""What was shown and found a moment ago: not each request of a client looks its key or session up."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from typing import Generic, TypeVar

SECONDS = 1.0
"""How long something is known. A key that another process revokes opens for as long."""

_MOST = 10_000
_Found = TypeVar("_Found")


class Known(Generic[_Found]):
    """What was found in the last second, by a digest of the text that opens it. Not thread-safe."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._known: dict[bytes, tuple[float, _Found]] = {}

    def find(self, text: str) -> _Found | None:
        """Returns what this text opens; None if it has to be looked up."""
        until, found = self._known.get(_digest(text), (0.0, None))
        return found if self._clock() < until else None

    def add(self, text: str, found: _Found) -> None:
        """Notes what has just been found."""
        if len(self._known) >= _MOST:
            self._known.clear()
        self._known[_digest(text)] = self._clock() + SECONDS, found

    def clear(self) -> None:
        """Forgets all: a key was revoked."""
        self._known.clear()


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("latin-1", "replace")).digest()
