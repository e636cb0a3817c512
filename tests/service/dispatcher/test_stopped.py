"""Two schedulers as processes: the one at work stands still before a write, is followed, and goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import text

from service.identity import Identity
from service.queue.store import Store
from tests.service.dispatcher.stopping_scheduler import AUDIT, CALLS
from tests.service.examples import make_spec

LEASE_SECONDS = 1.0
ROUNDS = 3


@dataclass(frozen=True, kw_only=True)
class Trial:
    """How many writes, of them by a scheduler that did not hold the lease, calls to MLflow, and terms."""

    writes: int
    stale_writes: int
    calls: Counter[str]
    terms: int


@contextmanager
def schedulers(url: str, folder: Path, *, guarded: bool) -> Iterator[list[subprocess.Popen[bytes]]]:
    running = []
    for seed in ("1", "2"):
        with (folder / f"scheduler-{seed}.log").open("wb") as log:
            module = "tests.service.dispatcher.stopping_scheduler"
            options = [url, str(folder), seed, str(LEASE_SECONDS), "yes" if guarded else "no"]
            command = [sys.executable, "-m", module, *options]
            running.append(subprocess.Popen(command, stdout=log, stderr=log))
    try:
        yield running
    finally:
        for process in running:
            process.kill()
            process.wait()


def stopped(process: subprocess.Popen[bytes]) -> bool:
    stat = Path(f"/proc/{process.pid}/stat").read_text()
    return stat.rpartition(")")[2].split()[0] == "T"


def play(url: str, folder: Path, rounds: int, *, guarded: bool = True) -> Trial:
    """Each round ends with the one that stood still going on, after another has taken over from it."""
    store = Store(url)
    with store._engine.begin() as connection:
        connection.execute(text(AUDIT))
    with schedulers(url, folder, guarded=guarded) as running:
        for _ in range(rounds):
            for _ in range(4):
                store.create_job(make_spec())
            still = _wait_for(running)
            _until_taken_over(store, still)
            os.kill(still.pid, signal.SIGCONT)
        _wait_for(running)  # by then the last one that went on has been refused, or has written
        time.sleep(LEASE_SECONDS / 2)
    with store._engine.begin() as connection:
        held = [each for (each,) in connection.execute(text("SELECT held FROM trial"))]
        connection.execute(text("DROP TABLE trial"))
    row = store.scheduler()
    store.close()
    calls = (
        Counter((folder / CALLS).read_text().splitlines()) if (folder / CALLS).exists() else Counter[str]()
    )
    stale = sum(not each for each in held)
    return Trial(writes=len(held), stale_writes=stale, calls=calls, terms=row.number if row else 0)


def _wait_for(running: list[subprocess.Popen[bytes]]) -> subprocess.Popen[bytes]:
    deadline = time.monotonic() + 300
    while True:
        for process in running:
            assert process.poll() is None
            if stopped(process):
                return process
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _until_taken_over(store: Store, still: subprocess.Popen[bytes]) -> None:
    holder = str(Identity.of(still.pid))
    deadline = time.monotonic() + 300
    while (row := store.scheduler()) is None or row.vacant or row.holder == holder:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_no_write_of_a_scheduler_that_stood_still_is_accepted(database_url: str, tmp_path: Path) -> None:
    trial = play(database_url, tmp_path, ROUNDS)

    assert trial.stale_writes == 0
    assert trial.writes > 0
    assert trial.terms > ROUNDS
