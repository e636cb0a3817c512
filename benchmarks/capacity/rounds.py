"""One round of the dispatcher over PostgreSQL, with a cluster in memory: its own work, without Ray's."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import product

from sqlalchemy import Engine, event

from benchmarks.capacity import rows
from benchmarks.postgres import Postgres
from benchmarks.progress import Progress
from benchmarks.result import Result
from service.database import make_engine
from service.dispatcher import Dispatcher
from service.fakes import FakeCluster, FakeResults
from service.jobs import Job
from service.launch import Node, Phase, submission_id
from service.settings import Settings
from service.store import Store

MACHINES, QUEUED = (10, 100, 1_000), (100, 1_000, 10_000)
QUICK_MACHINES, QUICK_QUEUED = (10, 100), (100,)
STILL_ROUNDS = 3
NOTES = (
    f"Machines of {rows.SHAPES[0]} CPUs in memory, each full with a job of {rows.SHAPES[0]} workers that "
    f"runs; jobs of {', '.join(map(str, rows.SHAPES))} workers wait in turns. No network: what Ray's and "
    "MLflow's answers take comes on top (see the head).",
    "New queue: no job has its reason yet, all are written. Nothing changes: the rounds after it "
    f"(the fastest of {STILL_ROUNDS}). A job ends: one or more start in its place, and those behind them "
    "have fewer jobs ahead, which is part of their reasons.",
    "CPU: of the service, without PostgreSQL's. Statements: those that the service sends to the database; "
    "one may carry the reasons of 500 jobs.",
)

Round = tuple[float, float, int]
"""Seconds that pass, seconds that the service computes, statements."""


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
    kinds = ("new queue", "nothing changes", "a job ends")
    measures = tuple(f"{kind}: {what}" for kind in kinds for what in ("s", "CPU s", "statements"))
    return Result(title="A round of the dispatcher", columns=columns + measures, rows=table, notes=NOTES)


def _cells(seconds: float, computed: float, statements: int) -> tuple[str, ...]:
    return f"{seconds:.2f}", f"{computed:.2f}", f"{statements:,}"


def _rounds(server: Postgres, machines: int, queued: int) -> list[Round]:
    """A round of each kind."""
    url = server.create(f"rounds_{machines}_{queued}")
    store, engine = Store(url), make_engine(url)
    store.migrate()
    results = FakeResults()
    running = [_with_run(job, results) for job in rows.running(machines)]
    rows.fill(engine, running)
    rows.fill(engine, rows.waiting(queued))
    cluster = _cluster(running)
    dispatcher = Dispatcher(Settings(), store, cluster, results)
    with _statements() as sent:
        new = _round(dispatcher, sent)
        still = min(_round(dispatcher, sent) for _ in range(STILL_ROUNDS))
        cluster.set_phase(submission_id(running[0].id, 1), Phase.SUCCEEDED)
        end = _round(dispatcher, sent)
    engine.dispose()
    store.close()
    return [new, still, end]


def _with_run(job: Job, results: FakeResults) -> Job:
    run = results.ensure_run(job_id=job.id, name=job.name, experiment="default")
    return replace(job, experiment_id=run.experiment_id, run_id=run.run_id)


def _cluster(running: list[Job]) -> FakeCluster:
    """A machine for each of the jobs."""
    cpus = float(rows.SHAPES[0])
    cluster = FakeCluster(
        [Node(id=f"node-{job.id}", address="10.0.0.1", cpus=cpus, gpus=0) for job in running]
    )
    for job in running:
        cluster.set_phase(submission_id(job.id, 1), Phase.RUNNING)
    return cluster


def _round(dispatcher: Dispatcher, sent: list[str]) -> Round:
    before, begun, computed = len(sent), time.perf_counter(), time.process_time()
    dispatcher.round()
    return time.perf_counter() - begun, time.process_time() - computed, len(sent) - before


@contextmanager
def _statements() -> Iterator[list[str]]:
    """All that any engine of this process sends while the context lasts."""
    sent: list[str] = []

    def note(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        sent.append(statement)

    event.listen(Engine, "before_cursor_execute", note)
    try:
        yield sent
    finally:
        event.remove(Engine, "before_cursor_execute", note)
