"""One round of the dispatcher on PostgreSQL with an in-memory cluster: its own work, without Ray's."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import product

from sqlalchemy import Engine, event

from benchmarks.progress import Progress
from benchmarks.result import Result
from service.backends.cluster import Launch, Node
from service.backends.memory import FIRST_STEP, MemoryCluster
from service.backends.memory_tracking import FakeResults
from service.dispatcher.dispatcher import Dispatcher
from service.dispatcher.orders import launch_of, name_of
from service.jobs.job import Job
from service.queue.database import make_engine
from service.queue.store import Store
from service.settings import Settings
from testing import rows
from testing.postgres import Postgres
from training import protocol

MACHINES, QUEUED = (10, 100, 1_000), (100, 1_000, 10_000)
QUICK_MACHINES, QUICK_QUEUED = (10, 100), (100,)
STILL_ROUNDS = 3
NOTES = (
    f"In-memory machines of {rows.SHAPES[0]} CPUs, each full with a running job of {rows.SHAPES[0]} workers; "
    f"queued jobs of {', '.join(map(str, rows.SHAPES))} workers in turns. No network: the time of Ray's and "
    "MLflow's answers comes on top (see the head).",
    "New queue: no job has a reason yet, and all are written. Nothing changes: the rounds after it "
    f"(the fastest of {STILL_ROUNDS}). Steps: each running job has made some, as about once a second, and "
    "all are written. A job ends: that round and the next, in which one or more jobs that have got their run "
    "start in its place; the jobs behind them have fewer jobs ahead, which is part of their reasons.",
    "CPU: of the scheduler, without PostgreSQL's. Statements: those that it sends to the database; "
    "one may carry the reasons of 500 jobs, or the progress of all.",
)

Round = tuple[float, float, int]
"""The elapsed seconds, the service's CPU seconds and the statements of a round."""


def runs(*, quick: bool) -> int:
    return len(_cases(quick))


def _cases(quick: bool) -> list[tuple[int, int]]:
    return list(product(QUICK_MACHINES if quick else MACHINES, QUICK_QUEUED if quick else QUEUED))


def measure(server: Postgres, shown: Progress, *, quick: bool) -> Result:
    table = []
    for machines, queued in _cases(quick):
        shown.doing(f"rounds, {machines} machines, {queued} jobs wait")
        times = _rounds(server, machines, queued)
        table.append((f"{machines:,}", f"{queued:,}", *(cell for kind in times for cell in _cells(*kind))))
        shown.done(f"rounds, {machines} machines, {queued} jobs wait: {times}")
    columns = ("machines", "jobs that wait")
    kinds = ("new queue", "nothing changes", "steps", "a job ends")
    measures = tuple(f"{kind}: {what}" for kind in kinds for what in ("s", "CPU s", "statements"))
    return Result(title="A round of the dispatcher", columns=columns + measures, rows=table, notes=NOTES)


def _cells(seconds: float, computed: float, statements: int) -> tuple[str, ...]:
    return f"{seconds:.2f}", f"{computed:.2f}", f"{statements:,}"


def _rounds(server: Postgres, machines: int, queued: int) -> list[Round]:
    """Returns the cost of a round of each kind."""
    url = server.create(f"rounds_{machines}_{queued}")
    store, engine = Store(url), make_engine(url)
    store.migrate()
    results, settings = FakeResults(), Settings()
    running = [_with_run(job, results) for job in rows.running(machines)]
    rows.fill(engine, running)
    rows.fill(engine, rows.waiting(queued))
    cluster = _cluster([launch_of(job, settings, store) for job in running])
    now = [0.0]
    dispatcher = Dispatcher(settings, store, cluster, results, clock=lambda: now[0])

    def and_the_next() -> None:
        dispatcher.round()
        dispatcher.runs.create_all()
        dispatcher.round()

    with _statements() as sent:
        new = _timed(dispatcher.round, sent)
        still = min(_timed(dispatcher.round, sent) for _ in range(STILL_ROUNDS))
        now[0] += 1.0
        for job in running:
            cluster.run(name_of(job), protocol.Progress(step=2, total_steps=10, epoch=0, eta_seconds=1000.0))
        steps = _timed(dispatcher.round, sent)
        cluster.finish(name_of(running[0]))
        end = _timed(and_the_next, sent)
    engine.dispose()
    store.close()
    return [new, still, steps, end]


def _with_run(job: Job, results: FakeResults) -> Job:
    run = results.ensure_run(job_id=job.id, name=job.name, experiment="default")
    return replace(job, experiment_id=run.experiment_id, run_id=run.run_id, progress=FIRST_STEP)


def _cluster(launches: Sequence[Launch]) -> MemoryCluster:
    """Returns a cluster with one machine for each attempt; all attempts train."""
    cpus = float(rows.SHAPES[0])
    cluster = MemoryCluster(
        [Node(id=f"node-{launch.name}", address="10.0.0.1", cpus=cpus, gpus=0) for launch in launches]
    )
    for launch in launches:
        cluster.launch(launch)
        cluster.run(launch.name)
    return cluster


def _timed(do: Callable[[], object], sent: list[str]) -> Round:
    before, begun, computed = len(sent), time.perf_counter(), time.process_time()
    do()
    return time.perf_counter() - begun, time.process_time() - computed, len(sent) - before


@contextmanager
def _statements() -> Iterator[list[str]]:
    """Collects the statements that any engine of this process sends within the context."""
    sent: list[str] = []

    def note(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        sent.append(statement)

    event.listen(Engine, "before_cursor_execute", note)
    try:
        yield sent
    finally:
        event.remove(Engine, "before_cursor_execute", note)
