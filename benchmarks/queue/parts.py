"""The parts of the benchmark of the queue, one after the other, so that they do not share cores."""

from __future__ import annotations

import subprocess
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from statistics import median

from sqlalchemy import Engine

from benchmarks.peers.bare_ray import bare_ray
from benchmarks.progress import Progress, progress
from benchmarks.queue import reads, submissions
from benchmarks.queue.api import ROOT, Api, api
from benchmarks.result import Options, Result, comparison
from benchmarks.servers import SYNCBN, environment, folder_of_our_own
from benchmarks.trials import Contestant, in_turns, runs
from service.queue.database import make_engine
from service.queue.store import Store
from testing.postgres import Postgres, postgres

SIZES, QUICK_SIZES = (10_000, 100_000, 1_000_000), (100, 1_000)
SECONDS, QUICK_SECONDS = 4.0, 1.0
FOLLOWED_SIZE = 100_000
OURS, TWO, BARE, RAY = "ours", "ours, two API processes", "bare inserts", "Ray's Jobs API"
ON = {"sqlite": "SQLite", "postgresql": "PostgreSQL"}
NOTES = (
    f"Submissions: {submissions.CLIENTS} clients with keep-alive, one light process on the same two cores, "
    "send recipes/digits.yaml as JSON, each time with another Idempotency-Key, name, seed and label, as soon "
    "as their last one is answered, for {seconds:g} s a run. A submission: the time of a run over the number "
    "of its answers.",
    f"{TWO}: half of the clients send to each; both processes use the one database.",
    f"{BARE}: as many threads insert the same rows into the same tables, a row a commit, by sqlite3 and "
    "psycopg alone: no HTTP, no checks. PostgreSQL with its default settings and SQLite with "
    "synchronous=FULL: each commit waits for the disk.",
    f"{RAY}: `POST /api/jobs/` of Ray's dashboard, for jobs that wait for more CPUs than there are, so that "
    "Ray starts no process for them. It keeps them in the memory of its head: they are not durable.",
    f"Reads: {reads.REQUESTS} requests of one client, one after the other, from an API of its own. Of the "
    f"jobs in the table, {reads.WAITING:,} wait and {reads.FOLLOWERS} run; the others have ended.",
)


def measure(options: Options) -> Result:
    sizes = QUICK_SIZES if options.quick else SIZES
    seconds = QUICK_SECONDS if options.quick else SECONDS
    total = runs(range(6), options) + 2 * len(sizes) + 2
    with (
        progress("queue", total) as shown,
        folder_of_our_own() as folder,
        postgres() as server,
    ):
        samples = _submissions(shown, folder, server, options, seconds)
        table, others = _reads(shown, folder, server, sizes)
    rates = [(who, _rate(found)) for who, found in samples.items()]
    notes = [note.format(seconds=seconds) for note in NOTES]
    result = comparison("Queue", _by_measure(samples) | others, reference=BARE, notes=notes)
    rate = Result(title="Submissions per second", columns=("contestant", "per second"), rows=rates)
    columns = ("request", "database", *(f"{size:,} jobs: median, ms" for size in sizes))
    return replace(result, parts=[rate, Result(title="Reads", columns=columns, rows=table)])


def _submissions(
    shown: Progress, folder: Path, server: Postgres, options: Options, seconds: float
) -> dict[str, Mapping[str, list[float]]]:
    """Returns the samples of each contestant, by measure."""
    urls = {"sqlite": f"sqlite:///{folder}/submissions.db", "postgresql": server.create("submissions")}
    with ExitStack() as stack:
        apis = {kind: stack.enter_context(_migrated(url, folder / kind)) for kind, url in urls.items()}
        second = stack.enter_context(_running(urls["postgresql"], folder / "second"))
        shown.doing("starting Ray")
        ray = stack.enter_context(bare_ray())
        contestants: dict[str, Contestant] = {
            f"{OURS}, SQLite": lambda: submissions.measures(submissions.ours([apis["sqlite"]], seconds)),
            f"{BARE}, SQLite": lambda: submissions.measures(
                submissions.sqlite_inserts(folder / "submissions.db", seconds)
            ),
            f"{OURS}, PostgreSQL": lambda: submissions.measures(
                submissions.ours([apis["postgresql"]], seconds)
            ),
            f"{TWO}, PostgreSQL": lambda: submissions.measures(
                submissions.ours([apis["postgresql"], second], seconds)
            ),
            f"{BARE}, PostgreSQL": lambda: submissions.measures(
                submissions.postgresql_inserts(server, "submissions", seconds)
            ),
            RAY: lambda: submissions.measures(submissions.rays(ray, seconds)),
        }
        found = in_turns(shown, contestants, options, rest=0.5)
    return {who: {name: list(found[name][who]) for name in found} for who in contestants}


@contextmanager
def _migrated(url: str, folder: Path) -> Iterator[Api]:
    """Runs an API whose database has its tables. folder: for its log."""
    store = Store(url)
    store.migrate()
    store.close()
    with _running(url, folder) as running:
        yield running


@contextmanager
def _running(url: str, folder: Path) -> Iterator[Api]:
    folder.mkdir()
    with api(url, folder) as running:
        yield running


def _reads(
    shown: Progress, folder: Path, server: Postgres, sizes: Sequence[int]
) -> tuple[list[tuple[str, ...]], dict[str, dict[str, list[float]]]]:
    """Returns the rows of the table of reads, and the samples of the API's memory."""
    table: list[tuple[str, ...]] = []
    memory: dict[str, dict[str, list[float]]] = {}
    urls = {"sqlite": f"sqlite:///{folder}/reads.db", "postgresql": server.create("reads")}
    for kind, url in urls.items():
        with _migrated(url, folder / f"{kind}-reads") as running, _engine(url) as engine:
            reads.prepare(engine)
            found: dict[str, list[str]] = defaultdict(list)
            for before, size in pairwise((0, *sizes)):
                shown.doing(f"{size:,} jobs in {ON[kind]}")
                reads.fill(engine, before + 1, size)
                if kind == "postgresql":
                    with server.connect("reads") as admin:
                        admin.execute("VACUUM ANALYZE")  # autovacuum would do this a minute later
                for name, took in reads.medians(
                    running, reads.requests(engine, size), reads.REQUESTS
                ).items():
                    found[name].append(f"{took:.1f}")
                shown.done(f"{size:,} jobs in {ON[kind]}")
                if size in {FOLLOWED_SIZE, QUICK_SIZES[-1]}:
                    memory |= _memory(shown, engine, running, ON[kind], size)
            table += [(name, ON[kind], *took) for name, took in found.items()]
            memory["`syncbn list`, s"] = {OURS: [_seconds_of_list(running) for _ in range(3)]}
    return table, memory


def _memory(
    shown: Progress, engine: Engine, running: Api, database: str, size: int
) -> dict[str, dict[str, list[float]]]:
    alone, followed = reads.memory_with_followers(engine, running)
    shown.done(f"memory with {database}: {alone:.0f} MiB, {followed:.0f} with followers")
    name = f"the API's memory (PSS), {size:,} jobs in {database}"
    return {
        f"{name}, MiB": {OURS: [alone]},
        f"{name}, {reads.FOLLOWERS} followers, MiB": {OURS: [followed]},
    }


@contextmanager
def _engine(url: str) -> Iterator[Engine]:
    engine = make_engine(url)
    yield engine
    engine.dispose()


def _seconds_of_list(running: Api) -> float:
    variables = {**environment(ROOT), "SYNCBN_URL": running.url, "SYNCBN_API_KEY": running.key}
    begun = time.perf_counter()
    subprocess.run([SYNCBN, "list"], env=variables, check=True, capture_output=True)
    return time.perf_counter() - begun


def _rate(found: Mapping[str, Sequence[float]]) -> str:
    return f"{1000 / median(found[submissions.RATE]):.0f}"


def _by_measure(samples: Mapping[str, Mapping[str, list[float]]]) -> dict[str, dict[str, list[float]]]:
    """Returns the samples of each database by measure and contestant, ours first."""
    found: dict[str, dict[str, list[float]]] = {}
    for database in ON.values():
        for name in (submissions.RATE, submissions.MEDIAN, submissions.WORST):
            measure, unit = name.rsplit(", ", 1)
            found[f"{database}: {measure}, {unit}"] = {
                who: samples[f"{who}, {database}"][name]
                for who in (OURS, TWO, BARE)
                if f"{who}, {database}" in samples
            }
            found[f"{database}: {measure}, {unit}"][RAY] = samples[RAY][name]
    return found
