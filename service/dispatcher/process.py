"""The scheduler's process: `syncbn serve --role scheduler`.

    standing by ── the lease is vacant or silent ──► at work ── asked to stop ──► steps down
         ▲                                              │
         └──────────── another has taken over ──────────┘

Several may stand by. Only this process imports Ray, which may end it when Ray's head is gone. Its parent then
restarts it, and nothing is lost.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Callable
from time import monotonic
from typing import Protocol

from service import logs
from service.backends.cluster import Cluster, Node
from service.dispatcher.held_lease import HeldLease
from service.dispatcher.round_timer import RoundTimer
from service.errors import Unavailable
from service.foreground import open_store, print_line, reported_errors, stop_on_signals
from service.identity import Identity, own_identity
from service.queue.lease import LEASE_SECONDS, SchedulerRow
from service.queue.store import Store
from service.settings import Settings
from training.protocol import Superseded

log = logging.getLogger(__name__)

BEAT_SECONDS = 2.0
LOOK_SECONDS = 1.0
_SECONDS_TO_END = 8.0
LONGEST_ROUND_SECONDS = 180.0
"""A round of the dispatcher that takes longer hangs in a call, and another process takes over."""
_WITH_PARENT = "--with-parent"


class Stuck(Exception):
    """A round of the dispatcher hangs, so no other may begin in this process."""


class ClosableCluster(Cluster, Protocol):
    """A cluster to which the connection can be closed."""

    def close(self) -> None:
        """Disconnects; attempts go on, and the next scheduler finds them."""


Connect = Callable[[int], ClosableCluster]
"""Connects the scheduler of that number to the cluster. Raises Unavailable."""
Dispatch = Callable[[HeldLease, Cluster, threading.Event, RoundTimer], None]
"""Runs the dispatcher until the event is set, and times each round. Raises Superseded."""


class SilenceTimer:
    """Measures how long a scheduler's row has not changed, by this process's own clock."""

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._seen: tuple[int, int] | None = None
        self._since = 0.0

    def seconds(self, row: SchedulerRow) -> float:
        """Returns the seconds since the row last changed. `row`: as it is now."""
        if (row.number, row.beat) != self._seen:
            self._seen, self._since = (row.number, row.beat), self._clock()
        return self._clock() - self._since

    def forget(self) -> None:
        """Starts anew: while the database is away, silence says nothing about the scheduler."""
        self._seen = None


def may_take_over(row: SchedulerRow | None, silence: SilenceTimer) -> bool:
    """Returns whether a standby may take over: the lease is vacant, or its holder has ended or is silent."""
    if row is None or row.vacant:
        return True
    holder = Identity.parse(row.holder)
    return (holder is not None and holder.has_ended()) or silence.seconds(row) >= LEASE_SECONDS


def stand_by(store: Store, holder: str, stop: threading.Event) -> int | None:
    """Blocks until this process is the scheduler; returns its number, or None once `stop` is set."""
    silence, printed = SilenceTimer(), ""
    while not stop.is_set():
        try:
            row = store.scheduler()
            if may_take_over(row, silence) and (number := store.take_over(row, holder)) is not None:
                return number
            text = f"scheduler: standing by, number {row.number} is at work" if row else ""
        except Unavailable as error:
            silence.forget()
            text = f"scheduler: standing by: {error}"
        if text and text != printed:
            print_line(text)
            printed = text
        stop.wait(LOOK_SECONDS)
    return None


class Term:
    """A scheduler's term: heartbeats in this thread, the dispatcher in another, which delays no heartbeat."""

    def __init__(self, number: int, store: Store, connect: Connect, dispatch: Dispatch) -> None:
        self.number = number
        self._store, self._connect, self._dispatch = store, connect, dispatch
        self._lease = HeldLease(number, store)
        self._ended = threading.Event()
        self._cluster: ClosableCluster | None = None
        self._nodes: list[Node] = []
        self._round = RoundTimer()
        self._problem = "it has not been contacted yet"
        self._thread = threading.Thread(target=self._work, name="dispatcher", daemon=True)

    def run(self, stop: threading.Event) -> None:
        """Blocks until `stop` is set, another scheduler has taken over, or the dispatcher fails.

        Raises Stuck if a round of the dispatcher hangs.
        """
        self._thread.start()
        try:
            while self._thread.is_alive() and self._round.seconds() < LONGEST_ROUND_SECONDS and self._beat():
                if stop.wait(BEAT_SECONDS if self._cluster else LOOK_SECONDS / 4):
                    break
        finally:
            self._end()

    def _beat(self) -> bool:
        """Writes a heartbeat; returns whether this is still the scheduler."""
        try:
            if self._cluster is not None:
                self._nodes, self._problem = self._cluster.nodes(), ""
        except Unavailable as error:
            self._problem = str(error)
        except Superseded:
            return False
        begun = monotonic()
        try:
            clock = self._lease.now()
            if not self._store.beat(self.number, nodes=self._nodes, problem=self._problem, clock=clock):
                return False
        except Unavailable as error:
            log.warning("%s", error)
            return True  # without the database no other scheduler can take over either
        self._lease.beaten(begun)
        return True

    def _work(self) -> None:
        try:
            if (cluster := self._connected()) is not None:
                self._dispatch(self._lease, cluster, self._ended, self._round)
        except Superseded as error:
            log.warning("%s", error)
        except Exception:
            log.exception("the dispatcher has failed")

    def _connected(self) -> ClosableCluster | None:
        """Connects to Ray, with retries; returns None if the term ends before Ray answers."""
        while not self._ended.is_set():
            try:
                self._cluster = self._connect(self.number)
                return self._cluster
            except Unavailable as error:
                self._problem = str(error)
            self._ended.wait(LOOK_SECONDS)
        return None

    def _end(self) -> None:
        self._ended.set()
        if self._cluster is not None:
            self._cluster.wake()
        self._thread.join(_SECONDS_TO_END)
        if self._thread.is_alive():
            raise Stuck
        if self._cluster is not None:
            self._cluster.close()
        try:
            self._store.step_down(self.number)
        except Unavailable as error:
            log.warning("%s", error)


def run(store: Store, stop: threading.Event, connect: Connect, dispatch: Dispatch) -> None:
    """Stands by and works in turns; blocks until `stop` is set."""
    holder = str(own_identity())
    while (number := stand_by(store, holder, stop)) is not None:
        print_line(f"scheduler: at work as number {number}")
        Term(number, store, connect, dispatch).run(stop)
        if not stop.is_set():
            print_line(f"scheduler: number {number} is no longer at work")
            stop.wait(LOOK_SECONDS)  # limits the rate if every term fails at once
    print_line("scheduler: ended")


def serve_scheduler(settings: Settings, stop: threading.Event) -> None:
    """Runs the scheduler for the queue, Ray and MLflow that `settings` names; blocks until `stop` is set."""
    from service.backends.mlflow import MlflowRest
    from service.dispatcher.dispatcher import Dispatcher
    from service.dispatcher.guarded import GuardedCluster, GuardedResults

    store = open_store(settings.database_url)
    results = MlflowRest(settings.mlflow_url, settings.mlflow_public_url)

    def connect(number: int) -> ClosableCluster:
        # Otherwise Ray prints the stack of every thread on SIGTERM. Ray reads this when it is imported.
        os.environ.setdefault("RAY_DISABLE_FAILURE_SIGNAL_HANDLER", "1")
        from service.backends.ray import RayCluster

        token = settings.ray_token.get_secret_value() if settings.ray_token else None
        row = store.scheduler()
        assert row is not None  # this process holds it
        return RayCluster(settings.ray_address, token=token, fence=number, queue=row.queue)

    def dispatch(lease: HeldLease, cluster: Cluster, ended: threading.Event, timer: RoundTimer) -> None:
        guarded = GuardedCluster(cluster, lease), GuardedResults(results, lease)
        Dispatcher(settings, lease.store, *guarded, now=lease.now).run(ended, timer)

    try:
        run(store, stop, connect, dispatch)
    except Stuck:
        print_line("scheduler: a dispatcher round hangs: this process exits, another has to take over")
        os._exit(1)  # the hanging thread would block an orderly exit too
    finally:
        store.close()


def command(*, with_parent: bool = False) -> list[str]:
    """Returns the command line of a scheduler that reads its settings from the environment.

    with_parent: it ends when its standard input closes.
    """
    return [sys.executable, "-m", "service.dispatcher.process", *([_WITH_PARENT] if with_parent else [])]


def main() -> int:
    """Runs the process that `command` starts; returns the exit code: 0 stopped, 2 it could not start."""
    stop = stop_on_signals()
    if _WITH_PARENT in sys.argv:
        threading.Thread(target=_follow_parent, args=(stop,), name="parent", daemon=True).start()
    with reported_errors() as failed:
        settings = Settings.from_env()
        logs.configure(settings.log_format, text_prefix="scheduler: ")
        serve_scheduler(settings, stop)
    return 2 if failed else 0


def _follow_parent(stop: threading.Event) -> None:
    # Not sys.stdin: a thread that waits in it holds its lock while Python shuts down.
    while os.read(0, 4096):
        pass
    stop.set()


if __name__ == "__main__":
    raise SystemExit(main())
