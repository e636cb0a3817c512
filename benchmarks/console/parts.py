"""The parts of the benchmark of the console, one after the other, so that they do not share cores."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from benchmarks.console import open_pages, paints, tables
from benchmarks.console.tables import Shown
from benchmarks.progress import Progress, progress
from benchmarks.queue import reads
from benchmarks.queue.api import Api, api
from benchmarks.result import Options, Result, comparison
from benchmarks.servers import folder_of_our_own
from service.queue.database import make_engine
from service.queue.store import Store

PAINTS, QUICK_PAINTS = 7, 1
OPEN_PAGES, QUICK_OPEN_PAGES = 200, 24
SECONDS, QUICK_SECONDS = 20.0, 2.0
ENDED, QUICK_ENDED = 10_000, 500
OURS = "ours"
NOTES = (
    "The tables hold {ended:,} ended jobs, {waiting:,} that wait and {running} that run, in SQLite. First "
    "paint: `first-contentful-paint` of headless Chromium on the same cores, which has opened the page "
    "before, median of {paints}. Files: what a new browser loads for the page, packed by gzip as it is sent.",
    "{open_pages} open pages: a client for each, which reads the streams that the page opens. Meanwhile "
    "{busy} jobs make {steps} steps a second: their spools and logs grow with each, and the database gets "
    "the progress of each job once a second. The pages of jobs, comparisons and logs are each of other jobs; "
    "{sweeps} sweeps of {points} jobs; {filters} filters of lists. CPU: of the API's process over "
    "{seconds:g} s, in percent of a core.",
)


def measure(options: Options) -> Result:
    ended = QUICK_ENDED if options.quick else ENDED
    with folder_of_our_own() as folder:
        url, storage = f"sqlite:///{folder}/console.db", folder / "checkpoints"
        store = Store(url)
        store.migrate()
        engine = make_engine(url)
        shown = tables.fill(store, engine, storage, ended, quick=options.quick)
        with api(url, folder) as running:
            return _measured(running, store, storage, shown, options)


def _measured(running: Api, store: Store, storage: Path, shown: Shown, options: Options) -> Result:
    count = QUICK_OPEN_PAGES if options.quick else OPEN_PAGES
    seconds = QUICK_SECONDS if options.quick else SECONDS
    paths, kinds = paints.pages(shown), open_pages.kinds(shown, count)
    with progress("console", len(paths) + len(kinds) * options.repeats) as told:
        painted = _painted(told, running, paths, QUICK_PAINTS if options.quick else PAINTS)
        busy = {
            f"{count} {kind}, CPU, %": {
                OURS: [
                    _busy(told, kind, open_pages.cpu_percent(running, store, storage, shown, pages, seconds))
                    for _ in range(options.repeats)
                ]
            }
            for kind, pages in kinds.items()
        }
    notes = [
        note.format(
            ended=QUICK_ENDED if options.quick else ENDED,
            waiting=reads.WAITING,
            running=reads.FOLLOWERS + len(shown.busy),
            paints=QUICK_PAINTS if options.quick else PAINTS,
            open_pages=count,
            busy=len(shown.busy),
            steps=open_pages.STEPS_PER_SECOND,
            sweeps=len(shown.sweeps),
            points=tables.POINTS,
            filters=len(set(kinds["lists of jobs"])),
            seconds=seconds,
        )
        for note in NOTES
    ]
    cost = comparison("Console", busy, reference=None, notes=notes)
    columns = ("page", "first paint, ms", "files, kB")
    return Result(
        title="Console",
        notes=notes,
        samples=cost.samples,
        parts=[
            Result(title="Pages", columns=columns, rows=painted),
            Result(title="Open pages", columns=cost.columns, rows=cost.rows),
        ],
    )


def _painted(told: Progress, running: Api, paths: Mapping[str, str], paints_: int) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for name, milliseconds, kilobytes in paints.measured(running, paths, paints_):
        rows.append((name, f"{milliseconds:.0f}", f"{kilobytes:.0f}"))
        told.done(f"{name}: {milliseconds:.0f} ms, {kilobytes:.0f} kB")
    return rows


def _busy(told: Progress, kind: str, percent: float) -> float:
    told.done(f"{kind}: {percent:.1f} % of a core")
    return percent
