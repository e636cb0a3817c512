"""The processes of a run: API, scheduler, machines, tracking server, forked from one that is warm.

Forked, because a process that has to import everything needs two seconds before the next fault can hit it.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing import parent_process
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any
from unittest.mock import patch

from sqlalchemy import Connection, text

from service.backends.cluster import Cluster
from service.backends.memory_tracking import FakeResults
from service.dispatcher import held_lease, process
from service.dispatcher.dispatcher import Dispatcher
from service.dispatcher.guarded import GuardedCluster, GuardedResults
from service.dispatcher.held_lease import HeldLease
from service.dispatcher.round_timer import RoundTimer
from service.foreground import open_store, reported_errors, stop_on_signals
from service.queue import lease
from service.queue.writes import Writes
from service.roles import Role
from service.server import serve as serve_service
from service.settings import Settings
from testing import clocks
from testing.chaos.machines import Machines
from testing.chaos.remote import RemoteCluster, RemoteResults, serve
from testing.clocks import Clock
from testing.warm import warm

_PRELOADED = (
    "testing.chaos.processes",
    "service.api.app",
    "service.api.http_server",
    "service.backends.mlflow",
    "sqlalchemy.dialects.postgresql.psycopg",
    "sqlalchemy.dialects.sqlite.pysqlite",
    "uvicorn.protocols.http.httptools_impl",
    "uvicorn.loops.auto",
)
# In the same transaction as the write: the number of its writer, and the number in force.
_NOTE_WRITE = text(
    "INSERT INTO chaos_writes (number, in_force) "
    "SELECT CAST(:number AS INTEGER), CASE WHEN holder = '' THEN 0 ELSE number END FROM scheduler"
)


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a run's processes find each other. lease_seconds: the schedulers' lease; None: the real one."""

    folder: Path
    database_url: str
    lease_seconds: float | None

    @property
    def cluster(self) -> Path:
        return self.folder / "cluster"

    @property
    def tracking(self) -> Path:
        return self.folder / "tracking"

    def clock(self, name: str) -> Clock:
        """Returns the wall clock of the process of that name."""
        return Clock(self.folder / f"{name}.clock")

    def variables(self) -> dict[str, str]:
        return {
            "SYNCBN_DATABASE_URL": self.database_url,
            "SYNCBN_STORAGE": str(self.folder / "runs"),
            "SYNCBN_MLFLOW_URL": "http://127.0.0.1:9",
            "SYNCBN_API_KEY": "chaos",
        }


class Part:
    """A process that is started again whenever it has ended."""

    def __init__(self, name: str, place: Place, function: Callable[..., None], *args: Any) -> None:
        self.name, self._place = name, place
        self._work = partial(function, place, *args)
        self._process: BaseProcess | None = None
        self.clock = place.clock(name)
        self.clock.create()

    def ensure_started(self) -> None:
        if self._process is None or self._process.exitcode is not None:
            context = warm(*_PRELOADED)
            output = self._place.folder / f"{self.name}.log"
            arguments = self._work, output, self.clock
            with patch.dict(os.environ, clocks.preloaded()):
                self._process = context.Process(target=_run, args=arguments, daemon=True)
                self._process.start()

    def signal(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.exitcode is None and self._process.pid:
            os.kill(self._process.pid, number)

    def end(self) -> None:
        if self._process is not None and self._process.pid is not None:
            self.signal(signal.SIGKILL)
            self._process.join()


def _run(work: Callable[[], None], output: Path, clock: Clock) -> None:
    clock.follow()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent
    threading.Thread(target=_die_with_parent, daemon=True).start()
    with output.open("ab") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    with reported_errors():
        work()


def _die_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def api(place: Place, port: int) -> None:
    os.environ.update(place.variables())
    serve_service(role=Role.API, host="127.0.0.1", port=port)


def scheduler(place: Place) -> None:
    """As `service.dispatcher.process.serve_scheduler`, with the fake machines in place of Ray."""
    logging.basicConfig(format="%(asctime)s %(message)s")
    if place.lease_seconds is not None:
        for module in (lease, held_lease, process):
            setattr(module, "LEASE_SECONDS", place.lease_seconds)  # noqa: B010
        setattr(process, "BEAT_SECONDS", place.lease_seconds / 4)  # noqa: B010
        setattr(process, "LOOK_SECONDS", place.lease_seconds / 6)  # noqa: B010
    setattr(Writes, "_writing", _noted(Writes._writing))  # noqa: B010
    settings = Settings(database_url=place.database_url, storage=str(place.folder / "runs"))
    store, results = open_store(place.database_url), RemoteResults(place.tracking)

    def connect(number: int) -> RemoteCluster:
        return RemoteCluster(place.cluster, number)

    def dispatch(held: HeldLease, cluster: Cluster, ended: threading.Event, timer: RoundTimer) -> None:
        guarded = GuardedCluster(cluster, held), GuardedResults(results, held)
        Dispatcher(settings, held.store, *guarded, now=held.now).run(ended, timer)

    process.run(store, stop_on_signals(), connect, dispatch)


def _noted(writing: Callable[[Writes], Any]) -> Callable[[Writes], Any]:
    @contextmanager
    def noted(store: Writes) -> Iterator[Connection]:
        with writing(store) as connection:
            yield connection
            if store._number is not None:
                connection.execute(_NOTE_WRITE, {"number": store._number})

    return noted


def machines(place: Place, seed: int, longest: float) -> None:
    serve(place.cluster, Machines(seed, longest=longest).handle)


def tracking(place: Place) -> None:
    results = FakeResults()

    def handle(_: int, method: str, *args: Any, **options: Any) -> Any:
        if method == "set_unreachable":
            results.unreachable = args[0]
            return None
        if method == "runs":
            return _runs(results)
        return getattr(results, method)(*args, **options)

    serve(place.tracking, handle)


def _runs(results: FakeResults) -> Mapping[str, tuple[str, str]]:
    return {run_id: (job, results.endings.get(run_id, "")) for run_id, job in results.jobs.items()}
