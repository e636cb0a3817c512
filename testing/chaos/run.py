"""One run: start everything, let the faults happen, calm down, and look at what is left."""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from sqlalchemy import text

from service.client import Client, ClientError
from service.client.retry import Retry
from service.foreground import open_store
from service.jobs.job import Job, State
from service.ports import free_port
from service.queue.database import make_engine
from service.queue.lease import LEASE_SECONDS
from service.queue.store import Store
from testing import clocks
from testing.chaos import checks, processes
from testing.chaos.checks import Evidence
from testing.chaos.clients import Clients, commanding
from testing.chaos.databases import Database
from testing.chaos.plan import APIS, SCHEDULERS, Fault, Kind, faults
from testing.chaos.processes import Part, Place
from testing.chaos.remote import Remote

_TICK = 0.02
_SECONDS_TO_START = 60.0
_SECONDS_TO_REVIVE = 0.3


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How much happens.

    seconds: for how long faults come at least, one `every` so many seconds; they go on until every job has
    been submitted. submissions: jobs. sends: requests for each of them, spread over `seconds`. longest: how
    many seconds a start trains at most. lease_seconds: None: the real lease.
    seconds_to_calm: what has not ended, and has not changed for so long after the last fault, is stuck.
    """

    seconds: float
    submissions: int
    sends: int = 6
    every: float = 1.0
    commands_every: float = 0.3
    longest: float = 1.0
    lease_seconds: float | None = None
    seconds_to_calm: float = 120.0


@dataclass(frozen=True, kw_only=True)
class Result:
    """What came of a run.

    faults: how many of each kind have hit. impossible: kinds that need a C compiler, which is not there.
    """

    seed: int
    faults: Counter[Kind]
    clients: Clients
    evidence: Evidence
    schedulers: int
    seconds: float
    impossible: Sequence[Kind] = ()

    @property
    def findings(self) -> dict[str, list[str]]:
        """Everything that is wrong, by the column of the table; all are empty after a good run."""
        return {
            "lost": checks.lost(self.evidence),
            "doubled": checks.doubled(self.evidence),
            "stuck": checks.stuck(self.evidence),
            "stale": checks.stale(self.evidence),
            "left in MLflow": checks.left_in_mlflow(self.evidence),
            "wrong answers": [f"{count}x {what}" for what, count in self.clients.wrong.items()],
        }

    @property
    def good(self) -> bool:
        return not any(self.findings.values())


class Chaos:
    """The processes and servers of a run, and what the faults do to them. For one thread."""

    def __init__(self, place: Place, database: Database, seed: int, scale: Scale) -> None:
        self._database = database
        ports = [free_port() for _ in APIS]
        self.urls = [f"http://127.0.0.1:{port}" for port in ports]
        self.cluster, self.tracking = Remote(place.cluster, "Ray"), Remote(place.tracking, "MLflow")
        self.parts = {
            "cluster": Part("machines", place, processes.machines, seed, scale.longest),
            "tracking": Part("tracking-server", place, processes.tracking),
            **{name: Part(name, place, processes.api, port) for name, port in zip(APIS, ports, strict=True)},
            **{name: Part(name, place, processes.scheduler) for name in SCHEDULERS},
        }
        self._revive_at = 0.0

    def start(self, store: Store) -> None:
        """Blocks until every server answers and a scheduler holds the lease."""
        self.revive()
        self.cluster.tell("record")
        self.tracking.tell("runs")
        for url in self.urls:
            _wait_for_answer(url)
        deadline = time.monotonic() + _SECONDS_TO_START
        while store.scheduler() is None:
            if time.monotonic() > deadline:
                raise TimeoutError("no scheduler has taken the lease")
            time.sleep(_TICK)

    def revive(self) -> None:
        """Starts the processes that have ended, as whatever supervises them does."""
        if time.monotonic() >= self._revive_at:
            self._revive_at = time.monotonic() + _SECONDS_TO_REVIVE
            for part in self.parts.values():
                part.ensure_started()

    def begin(self, fault: Fault) -> Callable[[], None]:
        """Begins a fault; returns what ends it."""
        match fault.kind:
            case Kind.KILL_API | Kind.KILL_SCHEDULER:
                self.parts[fault.target].signal(signal.SIGKILL)
            case Kind.KILL_ALL:
                for name in (*APIS, *SCHEDULERS):
                    self.parts[name].signal(signal.SIGKILL)
            case Kind.STOP_API | Kind.STOP_SCHEDULER | Kind.CLUSTER_HANGS | Kind.MLFLOW_HANGS:
                self.parts[fault.target].signal(signal.SIGSTOP)
                return partial(self.parts[fault.target].signal, signal.SIGCONT)
            case Kind.CLOCK_STEPS:
                self.parts[fault.target].clock.set(fault.ahead)
            case Kind.CLUSTER_AWAY:
                self.cluster.tell("set_unreachable", True)
                return lambda: self.cluster.tell("set_unreachable", False)
            case Kind.MLFLOW_AWAY:
                self.tracking.tell("set_unreachable", True)
                return lambda: self.tracking.tell("set_unreachable", False)
            case kind:
                return self._database.begin(kind)
        return _nothing

    def end(self) -> None:
        for part in self.parts.values():
            part.end()


def run(database: Database, folder: Path, *, seed: int, scale: Scale) -> Result:
    """Blocks until all jobs have been submitted and everything has ended, and `scale.seconds` at least."""
    began = time.monotonic()
    kinds = [kind for kind in database.kinds if kind is not Kind.CLOCK_STEPS or clocks.library()]
    place = Place(folder=folder, database_url=database.url, lease_seconds=scale.lease_seconds)
    with ExitStack() as stack:
        (folder / "runs").mkdir()
        store = open_store(database.url)
        stack.callback(store.close)
        _note_writes(database.url)
        chaos = Chaos(place, database, seed, scale)
        stack.callback(chaos.end)
        chaos.start(store)
        clients = Clients(chaos.urls, seed)
        stack.callback(clients.stop)
        clients.submit(scale.submissions, sends=scale.sends, seconds=scale.seconds)
        with commanding(clients, seed, every=scale.commands_every):
            hit = _let_happen(chaos, clients, seed, scale, kinds)
        _calm(chaos, clients, store, scale.seconds_to_calm)
        row = store.scheduler()
        evidence = _evidence(chaos, clients, store, database.url, scale.submissions)
    return Result(
        seed=seed,
        faults=hit,
        clients=clients,
        evidence=evidence,
        schedulers=row.number if row else 0,
        seconds=time.monotonic() - began,
        impossible=sorted(set(database.kinds) - set(kinds)),
    )


def _let_happen(
    chaos: Chaos, clients: Clients, seed: int, scale: Scale, kinds: Sequence[Kind]
) -> Counter[Kind]:
    begun, hit = time.monotonic(), Counter[Kind]()
    lease = LEASE_SECONDS if scale.lease_seconds is None else scale.lease_seconds
    plan = faults(seed, kinds, every=scale.every, lease=lease)
    fault = next(plan)
    ends: dict[str, tuple[float, Callable[[], None]]] = {}  # by target
    while not (is_over := time.monotonic() > begun + scale.seconds and clients.have_submitted()) or ends:
        now = time.monotonic() - begun
        for target in [target for target, (at, _) in ends.items() if at <= now]:
            ends.pop(target)[1]()
        if fault.at <= now and fault.target not in ends and not is_over:
            ends[fault.target] = (now + fault.seconds, chaos.begin(fault))
            hit[fault.kind] += 1
            fault = next(plan)
        chaos.revive()
        time.sleep(_TICK)
    return hit


def _calm(chaos: Chaos, clients: Clients, store: Store, seconds: float) -> None:
    """Waits until nothing is left to do, or nothing has changed for `seconds`."""
    seen, deadline = "", time.monotonic() + seconds
    while time.monotonic() < deadline:
        chaos.revive()
        jobs = _all_jobs(store)
        if paused := [job.id for job in jobs if job.state is State.PAUSED]:
            clients.resume_all(paused)
        elif all(job.state.ended for job in jobs) and not _is_busy(chaos, store):
            return
        if (
            now := str([(job.id, job.state, job.attempt, job.start, job.archived_at) for job in jobs])
        ) != seen:
            seen, deadline = now, time.monotonic() + seconds
        time.sleep(0.1)


def _is_busy(chaos: Chaos, store: Store) -> bool:
    return bool(store.unarchived() or chaos.cluster.tell("record").left)


def _evidence(chaos: Chaos, clients: Clients, store: Store, url: str, submissions: int) -> Evidence:
    engine = make_engine(url)
    with engine.connect() as connection:
        keys = connection.execute(
            text("SELECT idempotency_key, id FROM jobs WHERE idempotency_key IS NOT NULL")
        ).all()
        writes = connection.execute(text("SELECT number, in_force FROM chaos_writes")).all()
    engine.dispose()
    return Evidence(
        submissions=submissions,
        acknowledged=clients.jobs,
        jobs=_all_jobs(store),
        keys=dict(map(tuple, keys)),
        cancelled=clients.cancelled,
        record=chaos.cluster.tell("record"),
        writes=[(number, in_force) for number, in_force in writes],
        runs=chaos.tracking.tell("runs"),
    )


def _note_writes(url: str) -> None:
    """Creates the table in which each transaction of a scheduler notes whose it is."""
    engine = make_engine(url)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE chaos_writes (number INTEGER, in_force INTEGER)"))
    engine.dispose()


def _all_jobs(store: Store) -> list[Job]:
    jobs, cursor = store.list_jobs(limit=1000)
    while cursor is not None:
        more, cursor = store.list_jobs(limit=1000, cursor=cursor)
        jobs += more
    return jobs


def _wait_for_answer(url: str) -> None:
    retry = Retry(_SECONDS_TO_START)
    with Client(url, "chaos") as client:
        while True:
            try:
                client.queue()
            except ClientError as error:
                retry.back_off(error)
            else:
                return


def _nothing() -> None:
    pass
