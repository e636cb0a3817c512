"""Transactions that change jobs and sweeps: those of a scheduler only while it holds the lease."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy
from typing import Self

from sqlalchemy import Connection, Engine

from service.queue import database, lease
from service.queue.notices import Listener, Notices


class Writes:
    """The write transactions of a `Store`. Those of a scheduler's store are guarded by its lease."""

    _engine: Engine
    _notices: Notices
    _number: int | None = None
    """Number of the scheduler that writes through this store; None for every other writer."""

    def as_scheduler(self, number: int) -> Self:
        """Returns this store for the scheduler of that number, on the same connections.

        Its changes of jobs and sweeps raise Superseded, and change nothing, if that scheduler does not hold
        the lease. Reads and the lease's own methods are the same.
        """
        bound = copy(self)
        bound._number = number
        return bound

    def listener(self, heard: Callable[[], object]) -> Listener:
        """Returns a listener that calls `heard` in its thread after each change of another process."""
        return Listener(self._notices, heard)

    @contextmanager
    def _writing(self) -> Iterator[Connection]:
        """Opens a transaction that changes jobs or sweeps, and wakes the scheduler unless it is its own.

        Raises Superseded and Unavailable.
        """
        with database.writing(self._engine) as connection:
            if self._number is not None:
                lease.hold(connection, self._number)
            yield connection
        if self._number is None:
            self._notices.send()
