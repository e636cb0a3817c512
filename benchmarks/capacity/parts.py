"""The parts of the capacity benchmark, run one after the other, so that they do not share cores."""

from __future__ import annotations

import os

from benchmarks.capacity import points, queue, rounds
from benchmarks.progress import progress
from benchmarks.result import Options, Result
from testing.postgres import postgres

NOTES = (
    "Each part runs once. The clients, the API and PostgreSQL share two cores: the figures show what a "
    "machine of this size carries, not what the programs could do on a larger one.",
)


def measure(options: Options) -> Result:
    quick = options.quick
    total = queue.runs(quick=quick) + rounds.runs(quick=quick) + points.runs()
    load: list[str] = []
    with progress("capacity", total) as shown, postgres() as server:
        load.append(_load("the API"))
        parts = queue.measure(server, shown, quick=quick)
        load.append(_load("the rounds"))
        parts.append(rounds.measure(server, shown, quick=quick))
        load.append(_load("MLflow"))
        parts.append(points.measure(server, shown, quick=quick))
    notes = [*NOTES, f"Load average of the minute before each part: {', '.join(load)}."]
    return Result(title="Capacity", notes=notes, parts=parts)


def _load(part: str) -> str:
    return f"{part} {os.getloadavg()[0]:.1f}"
