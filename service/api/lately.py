"""What was read a moment ago, for all who ask in the same moment."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

from service.api import sse

_MOST = 2_000
Value = TypeVar("Value")


class Lately:
    """Values that were read less than half the time between two looks ago.

    Thread-safe; two who ask at once for a new value may both read it.

    The look that tells streams of a change asks here, too. So what a stream gets is never older than the
    look that has woken it.
    """

    def __init__(self) -> None:
        self._found: dict[Hashable, tuple[float, Any]] = {}

    def of(self, key: Hashable, read: Callable[[], Value]) -> Value:
        """Returns what `read` returns, or returned a moment ago for this key. Raises what it raises."""
        now = time.monotonic()
        found = self._found.get(key)
        if found is None or now - found[0] > sse.POLL_S / 2:
            if len(self._found) > _MOST:
                self._found.clear()
            found = self._found[key] = (now, read())
        value: Value = found[1]
        return value
