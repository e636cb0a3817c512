"""How long to go on trying."""

from __future__ import annotations

import time


class Patience:
    """A time to go on trying in. `renew` starts it again, once something has worked."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self.renew()

    def renew(self) -> None:
        self._deadline = time.monotonic() + self._seconds
        self._pause = 0.1

    def rest(self, error: Exception) -> None:
        """Sleeps, a little longer each time. Raises `error` where that would take longer than is left."""
        if time.monotonic() + self._pause > self._deadline:
            raise error
        time.sleep(self._pause)
        self._pause = min(2.0, 2 * self._pause)
