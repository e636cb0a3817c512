"""The console with 10,000 jobs: when a page first paints, how large its files are, what open pages cost."""

from __future__ import annotations

import asyncio
import gzip
import shutil
import time
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

import psutil
from playwright.sync_api import BrowserContext, sync_playwright
from sqlalchemy import Engine, select

from benchmarks.progress import progress
from benchmarks.queue import load, reads
from benchmarks.queue.api import Api, api
from benchmarks.result import Options, Result, comparison
from benchmarks.servers import folder_of_our_own
from service.queue.database import make_engine
from service.queue.store import Store
from service.queue.tables import jobs
from training.protocol import Progress as JobProgress

PAINTS, QUICK_PAINTS = 7, 1
OPEN_PAGES, QUICK_OPEN_PAGES = 200, 20
SECONDS, QUICK_SECONDS = 20.0, 4.0
ENDED, QUICK_ENDED = 10_000, 500
REPORTING = 10
OURS = "ours"
PAGES = {
    "overview": "",
    "jobs": "jobs",
    "jobs, one state": "jobs?state=failed",
    "a job": "jobs/{job}",
    "its logs": "jobs/{job}/logs",
    "sweeps": "sweeps",
    "compare": "compare",
    "submit": "submit",
    "settings": "settings",
}
NOTES = (
    "The tables hold {ended:,} ended jobs, {waiting:,} that wait and {running} that run, in SQLite. First "
    "paint: `first-contentful-paint` of headless Chromium on the same cores, which has opened the page "
    "before, median of {paints}. Files: what a new browser loads for the page, packed by gzip as it is sent.",
    "{open_pages} open pages: as many streams of the overview, while {reporting} jobs report a step every "
    "second, so that each page changes every second. CPU: of the API's process over {seconds:g} s.",
)


def measure(options: Options) -> Result:
    paints = QUICK_PAINTS if options.quick else PAINTS
    open_pages = QUICK_OPEN_PAGES if options.quick else OPEN_PAGES
    seconds = QUICK_SECONDS if options.quick else SECONDS
    ended = QUICK_ENDED if options.quick else ENDED
    with progress("console", len(PAGES) + options.repeats) as shown, folder_of_our_own() as folder:
        shown.doing("filling the tables")
        url = f"sqlite:///{folder}/console.db"
        store = Store(url)
        store.migrate()
        engine = make_engine(url)
        reads.prepare(engine)
        reads.fill(engine, 1, ended)
        with api(url, folder) as running:
            table = _pages(shown.done, running, _a_job(engine), paints)
            busy = {
                OURS: [_busy(shown.done, running, store, open_pages, seconds) for _ in range(options.repeats)]
            }
        engine.dispose()
        store.close()
    notes = [
        note.format(
            ended=ended,
            waiting=reads.WAITING,
            running=reads.FOLLOWERS,
            paints=paints,
            open_pages=open_pages,
            reporting=REPORTING,
            seconds=seconds,
        )
        for note in NOTES
    ]
    measure_of = f"{open_pages} open pages, CPU, %"
    cost = comparison("Console", {measure_of: busy}, reference=None, notes=notes)
    columns = ("page", "first paint, ms", "files, kB")
    return Result(
        title="Console",
        notes=notes,
        samples=cost.samples,
        parts=[
            Result(title="Pages", columns=columns, rows=table),
            Result(title="Open pages", columns=cost.columns, rows=cost.rows),
        ],
    )


def _a_job(engine: Engine) -> str:
    with engine.connect() as connection:
        return str(
            connection.execute(select(jobs.c.id).where(jobs.c.state == "running").limit(1)).scalar_one()
        )


def _pages(done: Any, running: Api, job: str, paints: int) -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = []
    with sync_playwright() as playwright:
        path = shutil.which("chromium") or shutil.which("google-chrome")
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        for name, page in PAGES.items():
            context = browser.new_context()
            context.new_page().goto(f"{running.url}/sign-in?token={running.key}")
            address = f"{running.url}/{page.format(job=job)}"
            size = _size(context, address)
            times = sorted(_paint(context, address) for _ in range(paints))
            found.append((name, f"{times[len(times) // 2]:.0f}", f"{size / 1000:.0f}"))
            done(f"{name}: {times[len(times) // 2]:.0f} ms, {size / 1000:.0f} kB")
            context.close()
        browser.close()
    return found


def _size(context: BrowserContext, address: str) -> int:
    """Returns the bytes of the page and its files, packed."""
    page, answers = context.new_page(), []
    page.on("response", lambda answer: answers.append(answer))
    page.goto(address)
    page.wait_for_load_state("load")
    total = 0
    for answer in answers:
        if "/live/" not in answer.url and "/v1/" not in answer.url and "/data/" not in answer.url:
            with suppress(Exception):  # a redirect has no body
                total += len(gzip.compress(answer.body()))
    page.close()
    return total


_PAINT = """() => new Promise(found => {
  const look = () => {
    const entry = performance.getEntriesByName('first-contentful-paint')[0];
    entry ? found(entry.startTime) : requestAnimationFrame(look);
  };
  look();
})"""


def _paint(context: BrowserContext, address: str) -> float:
    page = context.new_page()
    page.goto(address)
    took = float(page.evaluate(_PAINT))
    page.close()
    return took


def _busy(done: Any, running: Api, store: Store, count: int, seconds: float) -> float:
    """Returns the CPU of the API's process in percent of a core while so many pages are open."""
    percent = asyncio.run(_watched(running, store, count, seconds))
    done(f"{count} open pages: {percent:.1f} % of a core")
    return percent


async def _watched(running: Api, store: Store, count: int, seconds: float) -> float:
    address, process = urlsplit(running.url), psutil.Process(running.pid)
    opened = [await asyncio.open_connection(address.hostname, address.port) for _ in range(count)]
    for _, writer in opened:
        writer.write(load.get(running.url, running.key, "/live/overview"))
    for reader, _ in opened:
        await reader.readuntil(b"hx-partial")
    reading = [asyncio.create_task(_drain(reader)) for reader, _ in opened]
    active = store.active()[:REPORTING]
    before, begun, step = _cpu(process), time.monotonic(), 0
    while (now := time.monotonic()) < begun + seconds:
        step += 1
        now_at = JobProgress(
            step=step, total_steps=1000, epoch=0, eta_seconds=60.0, metrics={"train_loss": 1 / step}
        )
        reports = [(job, now_at) for job in active]
        await asyncio.to_thread(store.write_progress, reports)
        await asyncio.sleep(max(now + 1.0 - time.monotonic(), 0))
    used = _cpu(process) - before
    took = time.monotonic() - begun
    for task, (_, writer) in zip(reading, opened, strict=True):
        task.cancel()
        writer.close()
    return 100 * used / took


async def _drain(reader: asyncio.StreamReader) -> None:
    while await reader.read(1 << 16):
        pass


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)
