"""A deadline for retries, with exponential backoff."""

from __future__ import annotations

import time
from collections.abc import Callable

from service.client.errors import ClientError, RequestError

_LONGEST_WAIT = 60.0


def ignore(error: ClientError) -> None:
    """Does nothing: the default for `on_retry`."""


class Retry:
    """A deadline for retries, `seconds` from now. `on_retry` is called with each error that is retried."""

    def __init__(self, seconds: float, on_retry: Callable[[ClientError], None] = ignore) -> None:
        self._seconds = seconds
        self._on_retry = on_retry
        self.renew()

    def renew(self) -> None:
        """Restarts the deadline and the backoff. Call it after a success."""
        self._deadline = time.monotonic() + self._seconds
        self._pause = 0.1

    def back_off(self, error: ClientError) -> None:
        """Sleeps 0.1 s to 2 s before the next try. Raises `error` if that would pass the deadline.

        After a refusal for too many requests it sleeps as long as the server says: that time passes for
        certain, so it does not count, unless it is more than a minute.
        """
        if isinstance(error, RequestError) and error.status == 429 and error.retry_after is not None:
            if error.retry_after > _LONGEST_WAIT:
                raise error
            self._on_retry(error)
            time.sleep(error.retry_after)
            self._deadline += error.retry_after
            return
        if time.monotonic() + self._pause > self._deadline:
            raise error
        self._on_retry(error)
        time.sleep(self._pause)
        self._pause = min(2.0, 2 * self._pause)
