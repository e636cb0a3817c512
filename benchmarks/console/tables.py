"""What the console shows in its benchmark: jobs that differ, sweeps, and one job of which there is a lot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, select, update

from benchmarks.queue import reads
from service.jobs.job import State, utc_now
from service.jobs.sweep import new_sweep
from service.queue.store import Store
from service.queue.tables import jobs
from testing import rows
from training.protocol import Point, Progress, log_file
from training.run_dir import RunFolder
from training.spec import load_yaml, override
from training.spec.sweep import SweepPlan, expanded
from training.tracking.spool import Spool

SWEEPS, POINTS = 20, 10
LARGE_SWEEP, METRICS, MANY_POINTS, LINES = 1_000, 300, 100_000, 1_000_000
QUICK = 20
"""So many times less with --quick."""
TOTAL_STEPS = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Shown:
    """What pages show. busy: the running jobs, POINTS of each of `sweeps`, which have names from busy-00 on.

    large: a running job of METRICS metrics, MANY_POINTS points and LINES lines of a log. large_sweep: one of
    LARGE_SWEEP jobs, which have ended.
    """

    busy: Sequence[str]
    sweeps: Sequence[str]
    large: str
    large_sweep: str


def fill(store: Store, engine: Engine, storage: Path, ended: int, *, quick: bool) -> Shown:
    """Fills the tables and the run folders."""
    reads.prepare(engine)
    reads.fill(engine, 1, ended)
    with engine.connect() as connection:
        query = select(jobs.c.id).where(jobs.c.state == State.RUNNING).limit(1)
        large = str(connection.execute(query).scalar_one())
    fewer = QUICK if quick else 1
    _log(storage / large, LINES // fewer)
    _write(engine, [large], progress=_progress(MANY_POINTS, METRICS))
    spool = Spool(RunFolder(path=storage / large).spool)
    for step in range(1, MANY_POINTS // fewer + 1):
        spool.append(Point(f"train_{step % 3}", 1 / step, 1_700_000_000_000 + 1000 * step, step))
    spool.close()
    large_sweep = _sweep(store, "large", LARGE_SWEEP // fewer)
    points = store.jobs_of_sweep(large_sweep)
    now = utc_now()
    _write(engine, [job.id for job in points], state=State.SUCCEEDED, finished_at=now)
    for number, job in enumerate(points):
        _write(engine, [job.id], progress=_progress(1000 + number, 3))
    names = [f"busy-{number:02}" for number in range(SWEEPS // (SWEEPS if quick else 1))]
    sweeps = [_sweep(store, name, POINTS) for name in names]
    busy = [job.id for sweep in sweeps for job in store.jobs_of_sweep(sweep)]
    _write(engine, busy, state=State.RUNNING, reason="", started_at=now - timedelta(hours=1), progress=None)
    for job_id in busy:
        _log(storage / job_id, 1000)
    return Shown(busy=busy, sweeps=sweeps, large=large, large_sweep=large_sweep)


def _sweep(store: Store, name: str, points: int) -> str:
    rates = [(number + 1) / points for number in range(points)]
    plan = SweepPlan(grid={"optimizer.init_args.lr": rates})
    data: Any = override(load_yaml(rows.RECIPE.read_text()), [f"name={name}"])
    found, _ = expanded(data, plan)
    sweep, _ = store.create_sweep(new_sweep(name, data, plan, found, created_at=utc_now()), found)
    return sweep.id


def _write(engine: Engine, ids: Sequence[str], **values: Any) -> None:
    placed = {"attempt": 1, "start": 1, "workers": 1, "experiment_id": "1", "run_id": f"{0:032x}"}
    with engine.begin() as connection:
        connection.execute(update(jobs).where(jobs.c.id.in_(ids)).values({**placed, **values}))


def _progress(step: int, metrics: int) -> Progress:
    found = {f"val_{number}": step / (number + 1) for number in range(metrics)}
    return Progress(step=step, total_steps=TOTAL_STEPS, epoch=1, eta_seconds=60.0, metrics=found)


def _log(folder: Path, lines: int) -> None:
    path = log_file(folder, 1, 0)
    path.parent.mkdir(parents=True)
    with path.open("w") as file:
        file.writelines(f"step {number}: loss {1 / number:.6f}\n" for number in range(1, lines + 1))
