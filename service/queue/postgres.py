"""A connection to PostgreSQL that gives up on a server that does not answer."""

from __future__ import annotations

import time
from collections.abc import Generator
from typing import Any, TypeVar

import psycopg

DEADLINE_S = 8.0
T = TypeVar("T")


class Connection(psycopg.Connection[Any]):
    """Closes itself and raises OperationalError when the server is silent for `deadline_s` in one statement.

    The kernel of a server that is frozen still acknowledges what is sent, so no option of TCP notices, and
    neither does the server's own `statement_timeout`. deadline_s: None: waits for ever.
    """

    deadline_s: float | None = DEADLINE_S

    def wait(self, gen: Generator[Any, Any, T], *args: Any, **options: Any) -> T:
        """Waits for a statement. psycopg calls this for whatever it sends on an open connection."""
        limited = gen if self.deadline_s is None else self._limited(gen, self.deadline_s)
        return super().wait(limited, *args, **options)

    def _limited(self, gen: Generator[Any, Any, T], seconds: float) -> Generator[Any, Any, T]:
        """Returns `gen` with a deadline. It is resumed several times a second, with 0 if nothing has come."""
        deadline = time.monotonic() + seconds
        try:
            wanted = next(gen)
            while True:
                ready = yield wanted
                if not ready and time.monotonic() > deadline:
                    self.pgconn.finish()
                    raise psycopg.OperationalError(f"no answer in {seconds:g} s")
                wanted = gen.send(ready)
        except StopIteration as end:
            result: T = end.value
            return result
