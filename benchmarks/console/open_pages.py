"""What pages that stay open cost: the CPU of the API while jobs make steps and pages follow them."""

from __future__ import annotations

import asyncio
import html
import re
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from itertools import cycle, islice
from pathlib import Path
from typing import TextIO
from urllib.parse import urljoin, urlsplit

import httpx
import psutil

from benchmarks.console.tables import POINTS, TOTAL_STEPS, Shown
from benchmarks.queue import load
from benchmarks.queue.api import Api
from service.queue.store import Store
from training.protocol import Point, log_file
from training.protocol import Progress as JobProgress
from training.run_dir import RunFolder
from training.tracking.spool import Spool

STEPS_PER_SECOND = 6
_TURN_S = 0.5  # the scheduler's; the progress of each job is written in every second one
_CONNECTED = re.compile(r'hx-sse:connect="([^"]+)"')
_LOG = re.compile(r'id="log"[^>]* data-job="([^"]+)"')

Paths = Sequence[str]


def kinds(shown: Shown, count: int) -> Mapping[str, Paths]:
    """Returns the pages of each measure, `count` of each."""
    names = ["*", "0*", "1*", *(f"?{digit}-*" for digit in range(10)), *(f"*-{n}" for n in range(1, 11))]
    states = ("state=running", "state=running&state=starting", "state=running&state=failed")
    filters = [f"jobs?{state}&name=busy-{name}" for state in states for name in names]
    busy = shown.busy
    compared = [
        [busy[(number + step) % len(busy)] for step in (0, 1, POINTS, 5 * POINTS)]
        for number in range(len(busy))
    ]
    pages = {
        "overviews": [""],
        "lists of jobs": ["jobs", *filters],
        "jobs": [f"jobs/{job}" for job in busy],
        "comparisons": ["compare?" + "&".join(f"job={job}" for job in each) for each in compared],
        "sweeps": [f"sweeps/{sweep}" for sweep in shown.sweeps],
        "logs": [f"jobs/{job}/logs" for job in busy],
    }
    mixed = {"overviews": 1, "lists of jobs": 1, "jobs": 2}
    return {
        **{name: _some(found, count) for name, found in pages.items()},
        "overviews, lists and jobs": [
            path for name, share in mixed.items() for path in _some(pages[name], share * count // 4)
        ],
        "of all kinds": [path for found in pages.values() for path in _some(found, count // len(pages))],
    }


def _some(paths: Paths, count: int) -> Paths:
    return list(islice(cycle(paths), count))


def cpu_percent(
    running: Api, store: Store, storage: Path, shown: Shown, paths: Paths, seconds: float
) -> float:
    """Returns the CPU of the API's process in percent of a core while these pages are open."""
    with ExitStack() as stack:
        logs = [stack.enter_context(log_file(storage / job, 1, 0).open("a")) for job in shown.busy]
        spools = [Spool(RunFolder(path=storage / job).spool) for job in shown.busy]
        for spool in spools:
            stack.callback(spool.close)
        training = _Training(store, shown, spools, logs)
        return asyncio.run(_watched(running, training, _streams(running, paths), seconds))


class _Training:
    """Lets all jobs make steps: points in their spools, lines in their logs, progress in the database."""

    def __init__(self, store: Store, shown: Shown, spools: Sequence[Spool], logs: Sequence[TextIO]) -> None:
        self._store, self._spools, self._logs = store, spools, logs
        self._jobs = store.several(shown.busy)
        self._step = int(time.time()) % (TOTAL_STEPS // 2)
        self._turn = 0

    def turn(self) -> None:
        """Does what happens in a turn of the scheduler."""
        self._turn += 1
        for _ in range(int(STEPS_PER_SECOND * _TURN_S)):
            self._step += 1
            now = int(1000 * time.time())
            for spool, log in zip(self._spools, self._logs, strict=True):
                spool.append(Point("train_loss", 1000 / self._step, now, self._step))
                spool.append(Point("train_accuracy", 1 - 1 / self._step, now, self._step))
                log.write(f"step {self._step}: loss {1000 / self._step:.6f}\n")
        for log in self._logs:
            log.flush()
        progress = JobProgress(
            step=self._step,
            total_steps=TOTAL_STEPS,
            epoch=0,
            eta_seconds=(TOTAL_STEPS - self._step) / STEPS_PER_SECOND,
            metrics={"train_loss": 1000 / self._step, "train_accuracy": 1 - 1 / self._step},
        )
        self._store.write_progress((job, progress) for job in self._jobs[self._turn % 2 :: 2])


def _streams(running: Api, paths: Paths) -> list[list[str]]:
    """Returns the streams that each page opens, as its markup and its scripts say."""
    found = {}
    with httpx.Client(headers={"Authorization": f"Bearer {running.key}"}, trust_env=False) as client:
        for path in dict.fromkeys(paths):
            address = f"{running.url}/{path}"
            text = client.get(address).raise_for_status().text
            streams = [urljoin(address, html.unescape(each)) for each in _CONNECTED.findall(text)]
            if log := _LOG.search(text):
                streams.append(f"{running.url}/live/jobs/{log[1]}/log?rank=0")
            found[path] = [each.removeprefix(running.url) for each in streams]
    return [found[path] for path in paths]


async def _watched(running: Api, training: _Training, streams: list[list[str]], seconds: float) -> float:
    process = psutil.Process(running.pid)
    pages = [_Page(running, each) for each in streams]
    following = [asyncio.create_task(page.follow()) for page in pages]
    await asyncio.gather(*(page.opened.wait() for page in pages))
    for _ in range(4):  # caches fill, and what the first look costs is over
        await asyncio.to_thread(training.turn)
        await asyncio.sleep(_TURN_S)
    before, begun = _cpu(process), time.monotonic()
    while (now := time.monotonic()) < begun + seconds:
        await asyncio.to_thread(training.turn)
        await asyncio.sleep(max(now + _TURN_S - time.monotonic(), 0))
    used, took = _cpu(process) - before, time.monotonic() - begun
    for task in following:
        task.cancel()
    ended = await asyncio.gather(*following, return_exceptions=True)
    for error in ended:
        if not isinstance(error, asyncio.CancelledError):
            raise RuntimeError(f"a page did not stay open: {error!r}")
    return 100 * used / took


class _Page:
    """An open page: reads its streams, and asks for what its scripts ask for."""

    def __init__(self, running: Api, streams: Sequence[str]) -> None:
        self._running, self._streams = running, streams
        self._left = len(streams)
        self.opened = asyncio.Event()

    async def follow(self) -> None:
        """Reads the streams until it is cancelled. Raises RuntimeError if one ends."""
        await asyncio.gather(*(self._read(each) for each in self._streams))

    async def _read(self, stream: str) -> None:
        reader, writer = await self._ask(stream)
        try:
            await reader.readuntil(b"data: ")
            self._left -= 1
            if not self._left:
                self.opened.set()
            while await reader.read(1 << 16):
                pass
            raise RuntimeError(f"{stream} ended")
        finally:
            writer.close()

    async def _ask(self, path: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        address = urlsplit(self._running.url)
        reader, writer = await asyncio.open_connection(address.hostname, address.port, limit=1 << 20)
        writer.write(load.get(self._running.url, self._running.key, path))
        return reader, writer


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)
