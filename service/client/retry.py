"""How long to go on trying to reach a server."""

from __future__ import annotations

import time
from collections.abc import Callable

from service.client.errors import ClientError


def ignore(error: ClientError) -> None:
    """Tells nobody that the server is away."""


class Retry:
    """A time to go on trying in. `renew` starts it again, once something has worked."""

    def __init__(self, seconds: float, on_away: Callable[[ClientError], None] = ignore) -> None:
        self._seconds = seconds
        self._on_away = on_away
        self.renew()

    def renew(self) -> None:
        self._deadline = time.monotonic() + self._seconds
        self._pause = 0.1

    def rest(self, error: ClientError) -> None:
        """Sleeps, a little longer each time. Raises `error` where that would take longer than is left."""
        if time.monotonic() + self._pause > self._deadline:
            raise error
        self._on_away(error)
        time.sleep(self._pause)
        self._pause = min(2.0, 2 * self._pause)
