"""Whether the checks of chaos on a real stack find what they look for. Deaths: tests/e2e/test_deaths.py."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime
from itertools import islice
from typing import Any

import pytest

from service.client import Job
from service.client.models import Progress
from testing.chaos.clients import Clients
from testing.chaos.real import RealFault, RealResult, real_faults


def job(id: str, state: str = "succeeded", loss: float = 2.0, step: int = 30) -> Job:
    progress = Progress(step=step, total_steps=30, epoch=0, eta_seconds=None)
    metrics: dict[str, float | None] = {"train_loss": loss}
    return Job(id=id, name=id, state=state, created_at=datetime.now(UTC), progress=progress, metrics=metrics)


def clients(cancelled: tuple[str, ...] = (), **jobs: set[str]) -> Clients:
    told = Clients(["http://127.0.0.1:9"], 1)
    told.jobs.update(jobs)
    told.cancelled.update(cancelled)
    return told


JOBS = [job("j1"), job("j2", loss=2.000001), job("j3", "cancelled", step=4)]
GOOD = RealResult(
    seed=1,
    faults=Counter(),
    clients=clients(("j3",), one={"j1"}, two={"j2"}, three={"j3"}),
    jobs=JOBS,
    runs={"r1": ("j1", "FINISHED"), "r2": ("j2", "FINISHED"), "r3": ("j3", "KILLED")},
    left=(),
    seconds=1.0,
)
FOUR = clients(("j3",), one={"j1"}, two={"j2"}, three={"j3"}, four={"j4"})


def test_nothing_is_found_where_all_is_well() -> None:
    assert GOOD.good, GOOD.findings


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"jobs": JOBS[1:], "runs": {}}, "lost"),
        ({"jobs": [job("j1", step=29), *JOBS[1:]]}, "lost"),
        ({"clients": clients(one={"j1"}, two={"j2"}, three={"j3"})}, "lost"),
        ({"jobs": [job("j1", "failed"), *JOBS[1:]], "runs": {}}, "lost"),
        ({"clients": clients(("j3",), one={"j1", "j2"}, three={"j3"})}, "doubled"),
        ({"clients": clients(("j3",), one={"j1"}, three={"j3"})}, "doubled"),
        ({"jobs": [job("j1", loss=2.1), *JOBS[1:], job("j4")], "clients": FOUR}, "other losses"),
        ({"jobs": [job("j1", "running"), *JOBS[1:]]}, "stuck"),
        ({"left": ["123"]}, "stuck"),
        ({"runs": {"r1": ("j1", "RUNNING")}}, "left in MLflow"),
        ({"runs": {"r9": ("j9", "RUNNING")}}, "left in MLflow"),
    ],
)
def test_what_is_wrong_is_found(changes: dict[str, Any], found: str) -> None:
    wrong = {name for name, what in replace(GOOD, **changes).findings.items() if what}

    assert wrong == {found}


def test_a_seed_gives_the_same_faults_of_every_kind() -> None:
    plan, same, other = (
        [(kind, seconds) for kind, seconds, _ in islice(real_faults(seed), 20)] for seed in (7, 7, 8)
    )

    assert plan == same != other
    assert {kind for kind, _ in plan} == set(RealFault)
