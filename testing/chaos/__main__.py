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
from testing.chaos.run import Result, Scale, run

_SHOWN = 20


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
    for name in options.database or NAMES:
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
    return 0 if good else 1


def table(database: str, result: Result) -> str:
    """Returns the table of a run, and below it what is wrong."""
    clients, record = result.clients, result.evidence.record
    findings = result.findings
    states = sorted(job.state for job in result.evidence.jobs)
    rows = [
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
        *((name, len(found)) for name, found in findings.items()),
    ]
    width = max(len(name) for name, _ in rows)
    lines = [f"chaos on {database}", *(f"  {name:<{width}} {value:>7}" for name, value in rows)]
    for name, found in findings.items():
        lines += [f"  {name}: {what}" for what in found[:_SHOWN]]
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m testing.chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=1, help="the same seed gives the same plan of faults")
    parser.add_argument("--minutes", type=float, default=3.0, help="for how long faults come at least")
    parser.add_argument("--database", action="append", choices=NAMES, help="default: both, in turn")
    parser.add_argument("--submissions", type=int, default=1000, help="jobs")
    parser.add_argument("--retries", type=int, default=5, help="further requests with the key of each job")
    parser.add_argument("--every", type=float, default=2.0, help="seconds between two faults")
    parser.add_argument("--lease", type=float, default=None, help="seconds of the lease; default: the real")
    return parser


if __name__ == "__main__":
    sys.exit(main())
