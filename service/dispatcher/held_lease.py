"""The lease as its holder sees it: whether this scheduler may still act, asked before it acts outside."""

from __future__ import annotations

import threading
from collections.abc import Callable
from time import monotonic

from service.errors import Unavailable
from service.queue.lease import LEASE_SECONDS
from service.queue.store import Store
from training.protocol import Superseded


class HeldLease:
    """The lease of scheduler `number`. Thread-safe.

    Every write of `store` carries the number, so it needs no look before it. A server that knows no numbers
    (MLflow, Ray's placement groups) is written to only right after `check` or `check_beat`.
    """

    def __init__(self, number: int, store: Store, *, clock: Callable[[], float] = monotonic) -> None:
        self.number, self.store = number, store.as_scheduler(number)
        self._clock, self._lock = clock, threading.Lock()
        self._beaten_at = clock()
        self._clock_began: float | None = None

    def beaten(self, begun: float) -> None:
        """Notes a successful heartbeat. begun: when its statement was sent, by the monotonic clock.

        A standby counts the lease from when it saw that beat, which is later: it takes over later than this
        scheduler stops to act.
        """
        self._beaten_at = begun

    def now(self) -> float:
        """Returns the time of the queue's clock (`SchedulerRow.clock`). At first it may raise Unavailable."""
        with self._lock:
            if self._clock_began is None:
                row = self.store.scheduler()
                assert row is not None
                self._clock_began = self._clock() - row.clock
            return self._clock() - self._clock_began

    def check_beat(self) -> None:
        """Raises Unavailable if the last heartbeat is older than the lease. Asks nobody.

        That is so after a suspension, or while the database is away: nothing says who holds the lease.
        """
        silent = self._clock() - self._beaten_at
        if silent >= LEASE_SECONDS:
            raise Unavailable("the database", f"the lease has not been renewed for {silent:.0f} s")

    def check(self) -> None:
        """Raises Superseded if another scheduler holds the lease, and what `check_beat` raises."""
        row = self.store.scheduler()
        if row is None or row.number != self.number or row.vacant:
            raise Superseded(f"scheduler number {self.number} does not hold the lease any more")
        self.check_beat()  # last: this process may have been suspended while it asked
