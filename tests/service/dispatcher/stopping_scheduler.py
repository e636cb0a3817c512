"""A scheduler's process that stops itself (SIGSTOP) before one of its writes, in each term before another.

It works on a cluster in memory whose attempts train and end by themselves. Every write of its terms is noted
in its transaction: by whom it is, and who held the lease. A call that changes MLflow is noted in a file.

    python -m tests.service.dispatcher.stopping_scheduler URL FOLDER SEED LEASE_SECONDS GUARDED
"""

from __future__ import annotations

import random
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, text

from service.backends.cluster import Cluster, Node, Phase, Status
from service.backends.memory import MemoryCluster
from service.backends.memory_tracking import FakeResults
from service.dispatcher import held_lease, process
from service.dispatcher.dispatcher import Dispatcher
from service.dispatcher.guarded import GuardedCluster, GuardedResults
from service.dispatcher.held_lease import HeldLease
from service.dispatcher.round_timer import RoundTimer
from service.foreground import stop_on_signals
from service.queue import database, lease
from service.queue.store import Store
from service.queue.writes import Writes
from tests.service.world import settings_for
from training.protocol import Progress

AUDIT = "CREATE TABLE trial (writer INTEGER, in_force INTEGER, held BOOLEAN)"
_NOTE = text("INSERT INTO trial SELECT :writer, number, holder <> '' AND number = :writer FROM scheduler")
CALLS = "calls.txt"
STEPS = 3


class Training(MemoryCluster):
    """Each look at it is a step of every attempt."""

    def attempts(self) -> Mapping[str, Status]:
        for name, status in super().attempts().items():
            step = status.progress.step if status.progress else 0
            if status.phase is Phase.ENDED:
                continue
            if step == STEPS:
                self.finish(name)
            else:
                self.run(name, Progress(step=step + 1, total_steps=STEPS, epoch=0, eta_seconds=None))
        return super().attempts()

    def close(self) -> None:
        pass


class AuditedResults(FakeResults):
    """Notes each call that changes something, and whether its scheduler holds the lease then."""

    def __init__(self, store: Store, number: int, notes: Path) -> None:
        super().__init__()
        self._store, self._number, self._notes = store, number, notes

    def ensure_run(self, **of: Any) -> Any:
        self._audit("ensure_run")
        return super().ensure_run(**of)

    def end(self, *of: Any) -> None:
        self._audit("end")
        super().end(*of)

    def upload(self, *of: Any) -> None:
        self._audit("upload")
        super().upload(*of)

    def _audit(self, what: str) -> None:
        row = self._store.scheduler()
        held = row is not None and row.number == self._number and not row.vacant
        with self._notes.open("a") as notes:
            notes.write(f"{what} {held}\n")


def main(url: str, folder: str, seed: str, lease_seconds: str, guarded: str) -> None:
    for module in (lease, held_lease, process):
        setattr(module, "LEASE_SECONDS", float(lease_seconds))  # noqa: B010
    setattr(process, "BEAT_SECONDS", float(lease_seconds) / 10)  # noqa: B010
    setattr(process, "LOOK_SECONDS", float(lease_seconds) / 10)  # noqa: B010
    chance = random.Random(int(seed))
    writes_left: dict[int, int] = {}
    if guarded == "no":
        setattr(lease, "hold", lambda *_: None)  # noqa: B010
        setattr(HeldLease, "check", lambda _: None)  # noqa: B010
    writing, transaction, one_at_a_time = Writes._writing, database.writing, threading.RLock()

    @contextmanager
    def locked(engine: Engine) -> Iterator[Connection]:
        # Whoever stops in a transaction on SQLite locks all others out until it goes on.
        with one_at_a_time, transaction(engine) as connection:
            yield connection

    @contextmanager
    def audited(self: Writes) -> Iterator[Connection]:
        number = self._number
        if number is not None:
            left = writes_left.setdefault(number, chance.randint(1, 12))
            writes_left[number] = left - 1
            if left == 1:
                with one_at_a_time:
                    signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)  # this thread first
        with writing(self) as connection:
            yield connection
            if number is not None:
                connection.execute(_NOTE, {"writer": number})

    setattr(Writes, "_writing", audited)  # noqa: B010
    setattr(database, "writing", locked)  # noqa: B010
    store = Store(url)
    settings = settings_for(Path(folder))

    def connect(_: int) -> Training:
        return Training([Node(id="a", address="", cpus=2, gpus=0)])

    def dispatch(held: HeldLease, cluster: Cluster, ended: threading.Event, timer: RoundTimer) -> None:
        results = AuditedResults(store, held.number, Path(folder) / CALLS)
        outside = GuardedCluster(cluster, held), GuardedResults(results, held)
        Dispatcher(settings, held.store, *outside, now=held.now).run(ended, timer, poll_seconds=0.02)

    process.run(store, stop_on_signals(), connect, dispatch)


if __name__ == "__main__":
    main(*sys.argv[1:])
