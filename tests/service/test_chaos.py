"""The chaos of `make chaos` for some seconds, and whether its checks find what they look for."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from service.backends.cluster import Launch
from service.errors import Unavailable
from service.jobs.job import State
from testing import clocks
from testing.chaos import checks
from testing.chaos.__main__ import table
from testing.chaos.checks import Evidence
from testing.chaos.databases import (
    NAMES,
    PostgresDatabase,
    SqliteDatabase,
    postgres_database,
    sqlite_database,
)
from testing.chaos.machines import Machines, Record, Start
from testing.chaos.plan import POSTGRESQL, SQLITE_ON_A_FULL_DISK, Kind, commands, faults, overlap
from testing.chaos.run import Scale, run
from testing.clocks import Clock
from testing.postgres import NotInstalled
from tests.service.examples import make_job
from training.protocol import Order, Superseded
from training.spec import Resources

SHORT = Scale(
    seconds=6.0,
    submissions=16,
    sends=2,
    every=0.45,
    commands_every=0.2,
    longest=0.5,
    lease_seconds=1.5,
    seconds_to_calm=90.0,
)
VERBS = {"cancel", "pause", "resume", "resize", "priority"}
JOB = replace(make_job(state=State.SUCCEEDED, granted=1), run_id="run", experiment_id="1")
START = Start(
    job=JOB.id, name=f"{JOB.id}-1", start=1, number=1, begun=0.0, joins=0.1, ends=1.0, fate="finished"
)
FINISHED = replace(START, ended=1.0, end="finished")
LOST = replace(START, ended=1.0, end="lost")
RECORD = Record(starts=(FINISHED,), numbers=(1, 1, 2), refused_orders=0, refused_looks=0, wrong=(), left=())
GOOD = Evidence(
    submissions=1,
    acknowledged={"key": {JOB.id}},
    jobs=[JOB],
    keys={"key": JOB.id},
    cancelled=(),
    record=RECORD,
    writes=[(1, 1), (2, 2)],
    runs={"run": (JOB.id, "FINISHED")},
)


@pytest.fixture(params=NAMES)
def database(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    full_run: None,  # noqa: ARG001
) -> Iterator[SqliteDatabase | PostgresDatabase]:
    opened: AbstractContextManager[SqliteDatabase | PostgresDatabase] = (
        sqlite_database(tmp_path) if request.param == "sqlite" else postgres_database(fsync="off")
    )
    try:
        with opened as database:
            yield database
    except NotInstalled as error:
        pytest.skip(str(error))


def test_nothing_is_lost_doubled_or_stuck_while_everything_is_killed_and_taken_away(
    database: SqliteDatabase | PostgresDatabase, tmp_path: Path
) -> None:
    result = run(database, tmp_path, seed=1, scale=SHORT)

    assert result.good, table(type(database).__name__, result)
    assert result.schedulers > 1


def test_a_seed_gives_the_same_plan_with_every_kind_of_fault() -> None:
    for kinds in (POSTGRESQL, SQLITE_ON_A_FULL_DISK):
        plan, same, other = (list(islice(faults(n, kinds, every=1.0, lease=6.0), 50)) for n in (7, 7, 8))

        assert plan == same != other
        assert {fault.kind for fault in plan} == set(kinds)
        assert all(fault.seconds > 6.0 for fault in plan if fault.kind is Kind.STOP_SCHEDULER)
        for target in {fault.target for fault in plan}:
            mine = [(fault.at, fault.at + fault.seconds) for fault in plan if fault.target == target]
            assert not overlap(mine)
    plan_of_commands, same_commands, others = (list(islice(commands(n, every=1.0), 50)) for n in (7, 7, 8))
    assert plan_of_commands == same_commands != others
    assert {command.verb for command in plan_of_commands} == VERBS


_TELLS_TIME = """
import sqlite3, sys, time
from pathlib import Path
from testing.clocks import Clock
Clock(Path(sys.argv[1])).follow()
for _ in sys.stdin:
    (of_sqlite,) = sqlite3.connect(":memory:").execute("SELECT strftime('%s', 'now')").fetchone()
    print(time.time(), of_sqlite, time.monotonic(), flush=True)
"""


@pytest.mark.skipif(clocks.library() is None, reason="needs a C compiler")
def test_a_clock_that_steps_moves_the_wall_clock_of_the_processes_that_follow_it(tmp_path: Path) -> None:
    clock = Clock(tmp_path / "clock")
    clock.create()
    command = [sys.executable, "-c", _TELLS_TIME, str(tmp_path / "clock")]
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=os.environ | clocks.preloaded(), **pipes) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for ahead in (0.0, -3600.0, 86_400.0):
            clock.set(ahead)
            before = time.time(), time.time() - 1.0, time.monotonic()
            process.stdin.write("\n")
            process.stdin.flush()
            told = [float(each) for each in process.stdout.readline().split()]
            after = time.time(), time.time(), time.monotonic()

            own = [told[0] - ahead, told[1] - ahead, told[2]]
            assert all(low <= each <= high for low, each, high in zip(before, own, after, strict=True))
        process.stdin.close()
    assert process.returncode == 0


def test_nothing_is_found_where_all_is_well() -> None:
    assert checks.lost(GOOD) == checks.doubled(GOOD) == checks.stuck(GOOD) == checks.stale(GOOD) == []
    assert checks.left_in_mlflow(GOOD) == []


def ended(state: State, *starts: Start, **changes: Any) -> Evidence:
    job = replace(JOB, state=state)
    status = {State.FAILED: "FAILED", State.CANCELLED: "KILLED"}.get(state, "FINISHED")
    record = replace(RECORD, starts=starts)
    return replace(GOOD, jobs=[job], record=record, runs={"run": (JOB.id, status)}, **changes)


@pytest.mark.parametrize(
    ("evidence", "found"),
    [
        (replace(GOOD, jobs=[], keys={}, runs={}), "lost"),
        (replace(GOOD, submissions=2), "lost"),
        (ended(State.SUCCEEDED, LOST), "lost"),
        (ended(State.CANCELLED, LOST), "lost"),
        (ended(State.CANCELLED, FINISHED, cancelled={JOB.id}), "lost"),
        (ended(State.FAILED, LOST), "lost"),
        (ended(State.FAILED), "lost"),
        (replace(GOOD, acknowledged={"key": {JOB.id, "j2"}}), "doubled"),
        (replace(GOOD, keys={"key": "j2"}), "doubled"),
        (replace(GOOD, keys={}), "doubled"),
        (ended(State.SUCCEEDED, FINISHED, replace(LOST, begun=0.5, ended=0.7)), "doubled"),
        (replace(GOOD, record=replace(RECORD, wrong=("it was launched again",))), "doubled"),
        (replace(GOOD, jobs=[replace(JOB, state=State.PAUSED)]), "stuck"),
        (replace(GOOD, record=replace(RECORD, left=(START.name,))), "stuck"),
        (replace(GOOD, runs={"run": (JOB.id, "")}), "left_in_mlflow"),
        (replace(GOOD, runs={"run": (JOB.id, "FAILED")}), "left_in_mlflow"),
        (replace(GOOD, writes=[(1, 2)]), "stale"),
        (replace(GOOD, writes=[(1, 0)]), "stale"),
        (replace(GOOD, record=replace(RECORD, numbers=(2, 1))), "stale"),
    ],
)
def test_what_is_wrong_is_found(evidence: Evidence, found: str) -> None:
    assert getattr(checks, found)(evidence)


def test_the_machines_refuse_a_superseded_scheduler_and_record_every_interval() -> None:
    now = [0.0]
    machines = Machines(seed=1, longest=1.0, clock=lambda: now[0])
    order = Order(attempt="j1-1", start=1, spec={}, ranks=(), world_size=1, folder="/runs/j1", run_id="run")
    machines.handle(1, "launch", Launch(order=order, resources=Resources()))
    machines.handle(2, "attempts")

    with pytest.raises(Superseded):
        machines.handle(1, "end", "j1-1")
    now[0] = 0.01
    machines.handle(2, "end", "j1-1")
    now[0] = 5.0

    record = machines.handle(0, "record")
    (start,) = record.starts
    assert (start.begun, start.end, record.refused_orders, record.numbers) == (0.0, "ended", 1, (1, 2))
    assert start.ended < 0.3
    assert machines.handle(2, "attempts")["j1-1"].ended
    machines.handle(0, "set_unreachable", True)
    with pytest.raises(Unavailable):
        machines.handle(2, "attempts")
