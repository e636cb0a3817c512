"""The command `python -m testing.chaos`: runs, prints a table, and exits with 1 if anything is wrong."""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import tempfile
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from testing.chaos.databases import (
    NAMES,
    PostgresDatabase,
    SqliteDatabase,
    postgres_database,
    sqlite_database,
)
from testing.chaos.real import run_real
from testing.chaos.run import Result, Scale, run
from testing.chaos.tables import as_text


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ends its processes, and its disk
    scale = Scale(
        seconds=60 * options.minutes,
        submissions=options.submissions,
        sends=1 + options.retries,
        every=options.every,
        lease_seconds=options.lease,
    )
    good = True
    for name in [] if options.only_real else options.database or NAMES:
        folder = Path(tempfile.mkdtemp(prefix="syncbn-chaos-"))
        opened: AbstractContextManager[SqliteDatabase | PostgresDatabase] = (
            sqlite_database(folder) if name == "sqlite" else postgres_database()
        )
        with opened as database:
            result = run(database, folder, seed=options.seed, scale=scale)
        print(table(NAMES[name], result), flush=True)  # noqa: T201
        if result.good:
            shutil.rmtree(folder)
        else:
            print(f"  the logs of its processes: {folder}/*.log", flush=True)  # noqa: T201
        good &= result.good
    if options.real_jobs:
        good &= _real(options)
    return 0 if good else 1


def _real(options: argparse.Namespace) -> bool:
    folder = Path(tempfile.mkdtemp(prefix="syncbn-chaos-"))
    seconds = 60 * options.minutes
    result = run_real(
        folder, seed=options.seed, jobs=options.real_jobs, seconds=seconds, every=options.real_every
    )
    print(as_text("chaos on a real stack", result.rows, result.findings), flush=True)  # noqa: T201
    if result.good:
        shutil.rmtree(folder)
    else:
        print(f"  its folder: {folder}", flush=True)  # noqa: T201
    return result.good


def table(database: str, result: Result) -> str:
    """Returns the table of a run, and below it what is wrong."""
    clients, record = result.clients, result.evidence.record
    states = sorted(job.state for job in result.evidence.jobs)
    rows: list[tuple[str, object]] = [
        ("seed", result.seed),
        ("seconds", round(result.seconds)),
        *((f"fault: {kind}", count) for kind, count in sorted(result.faults.items())),
        *((f"command: {verb}", count) for verb, count in sorted(clients.commands.items())),
        ("terms of schedulers", result.schedulers),
        ("requests to submit", clients.sent),
        ("of them without an answer", clients.unanswered),
        ("jobs acknowledged", len(clients.jobs)),
        ("jobs", len(result.evidence.jobs)),
        *((f"jobs {state}", states.count(state)) for state in sorted(set(states))),
        ("starts on machines", len(record.starts)),
        ("writes of schedulers", len(result.evidence.writes)),
        ("orders obeyed", len(record.numbers)),
        ("orders of superseded schedulers refused", record.refused_orders),
        ("looks of superseded schedulers refused", record.refused_looks),
        *((f"not possible without a C compiler: {kind}", 0) for kind in result.impossible),
    ]
    return as_text(f"chaos on {database}", rows, result.findings)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m testing.chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=1, help="the same seed gives the same plan of faults")
    parser.add_argument("--minutes", type=float, default=3.0, help="for how long faults come at least")
    parser.add_argument("--database", action="append", choices=NAMES, help="default: both, in turn")
    parser.add_argument("--submissions", type=int, default=1000, help="jobs")
    parser.add_argument("--retries", type=int, default=5, help="further requests with the key of each job")
    parser.add_argument("--every", type=float, default=2.0, help="seconds between two faults")
    parser.add_argument("--real-jobs", type=int, default=24, help="jobs on a real Ray; 0: without that part")
    parser.add_argument("--only-real", action="store_true", help="only that part")
    parser.add_argument("--real-every", type=float, default=8.0, help="seconds between two faults there")
    parser.add_argument("--lease", type=float, help="seconds of the lease; default: the real")
    return parser


if __name__ == "__main__":
    sys.exit(main())
