"""Jobs whose processes are killed, stopped and hung on a real Ray: they end as if nothing had happened."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from service.client import Job
from tests.e2e.machines import Machines
from tests.e2e.stack import Served, Stack, digits

STEPS = 60
KINDS = ("0", "1", "agent", "sleep")
ROUNDS = int(os.environ.get("SYNCBN_TEST_KILLS", "1"))
"""How often each of these strikes a job. With 10 the test takes a quarter of an hour more."""


def struck(folder: Path, strikes: dict[int, str], *, pace: float = 0.0, **changes: Any) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    by_step = {str(step): whom for step, whom in strikes.items()}
    arguments = {"folder": str(folder), "strikes": by_step, "pace": pace}
    training = {
        "global_batch_size": 61,
        "max_steps": STEPS,
        "precision": "64-true",
        "checkpoint": {"every_steps": 7},
        "hang_seconds": 5,
    }
    return digits(
        model={"class_path": "mine.nets.Struck", "init_args": arguments},
        training=training | changes.pop("training", {}),
        **{"resources": {"workers": 2, "cpus_per_worker": 0.5}, "retries": 1 + len(KINDS) * ROUNDS} | changes,
    )


@pytest.fixture(scope="module")
def undisturbed(stack: Stack, code: Path, tmp_path_factory: pytest.TempPathFactory) -> Job:
    return succeeded(stack, stack.submit(struck(tmp_path_factory.mktemp("undisturbed"), {}), code))


def test_what_is_killed_or_hangs_at_random_steps_changes_no_bit(
    stack: Stack, code: Path, undisturbed: Job, tmp_path: Path
) -> None:
    """Rank 0, rank 1 and their host agent by SIGKILL; rank 1, which sleeps for ever, by the watchdog, which
    says where each rank stood.
    """
    steps = random.Random(ROUNDS).sample(range(2, STEPS), ROUNDS * len(KINDS))
    strikes = dict(zip(steps, KINDS * ROUNDS, strict=True))

    job = succeeded(stack, stack.submit(struck(tmp_path / "struck", strikes), code))

    assert len(list((tmp_path / "struck").iterdir())) == len(strikes)
    assert job.attempt == 1 + ROUNDS
    log = stack.log(job)
    for step, kind in strikes.items():
        assert kind == "agent" or f"at step {step}" in log
        told = f"rank {kind} was killed by SIGKILL at step {step} (infrastructure); starting"
        assert kind not in {"0", "1"} or told in log
    assert "time.sleep(10_000)" in log
    resumed = re.findall(r"going on from the checkpoint of step (\d+)", log)
    assert len(resumed) >= sum(step > 8 for step in strikes)  # there is one after 7 steps
    assert points(stack, job) == points(stack, undisturbed)
    assert weights(stack, job) == weights(stack, undisturbed)


def test_job_is_resized_and_paused_and_follows_the_same_curve(
    stack: Stack, code: Path, undisturbed: Job, tmp_path: Path
) -> None:
    elastic = {"workers": {"min": 1, "max": 3}, "cpus_per_worker": 0.5}
    job = stack.submit(struck(tmp_path / "struck", {}, pace=0.2, resources=elastic), code)
    with stack.client() as client:
        stack.until_step(job, 10)
        client.resize(job.id, 1)
        stack.until(job, lambda now: now.attempt == 2 and now.state == "running")
        stack.until_step(job, 30)
        client.pause(job.id)
        paused = stack.until(job, lambda now: now.state == "paused")
        assert "paused at step" in (paused.reason or "")
        assert client.cluster().running == []
        client.resume(job.id)
    done = succeeded(stack, job)

    assert done.attempt == 3
    assert by_step(points(stack, done)) == pytest.approx(by_step(points(stack, undisturbed)), rel=1e-9)


def test_bits_are_those_of_one_worker_through_resizes_and_kills(
    stack: Stack, code: Path, tmp_path: Path
) -> None:
    bits = {"reproducible": "bits", "precision": "32-true"}
    alone = {"workers": 1, "cpus_per_worker": 0.5}
    one = stack.submit(struck(tmp_path / "alone", {}, training=bits, resources=alone), code)
    kinds = ("0", "agent") * ROUNDS
    steps = random.Random(ROUNDS).sample(range(2, STEPS), len(kinds))
    elastic = {
        "resources": {"workers": {"min": 1, "max": 3}, "cpus_per_worker": 0.5},
        "retries": 1 + len(kinds),
    }
    strikes = dict(zip(steps, kinds, strict=True))
    job = stack.submit(struck(tmp_path / "struck", strikes, pace=0.05, training=bits, **elastic), code)
    with stack.client() as client:
        for workers, step in ((2, 0), (1, 20), (3, 40)):
            stack.until_step(job, step)
            client.resize(job.id, workers)
            stack.until(job, partial(_runs_on, workers))
    done, expected = succeeded(stack, job), succeeded(stack, one)

    assert len(list((tmp_path / "struck").iterdir())) == len(strikes)
    assert done.weights_sha256 == expected.weights_sha256 is not None
    assert points(stack, done) == points(stack, expected)


def _runs_on(workers: int, job: Job) -> bool:
    return job.state == "running" and job.workers == workers


def by_step(found: list[tuple[str, int, float | None]]) -> dict[tuple[str, int], float | None]:
    return {(name, step): value for name, step, value in found}


def test_machine_that_is_gone_costs_its_workers_and_nothing_else(
    machines: Machines, stack: Stack, code: Path, undisturbed: Job, tmp_path: Path
) -> None:
    """The job has one worker on each of two; all that runs on the second is killed."""
    elastic = {"workers": {"min": 1, "max": 2}, "cpus_per_worker": 1}
    job = machines.submit(struck(tmp_path / "struck", {}, pace=0.2, resources=elastic), code)
    running = machines.until_step(job, 10)
    assert running.workers == 2
    machines.kill_second()
    done = succeeded(machines, job)

    where = [machines.log(job, rank=rank, attempt=running.attempt) for rank in (0, 1)]
    addresses = [re.findall(r"^rank \d of 2 on \S+ \((.+)\)$", text, re.MULTILINE)[0] for text in where]
    assert sorted(addresses) == machines.addresses
    assert (done.attempt, done.workers) == (running.attempt + 1, 1)
    assert by_step(points(machines, done)) == pytest.approx(by_step(points(stack, undisturbed)), rel=1e-9)


def succeeded(served: Served, job: Job) -> Job:
    done = served.ended(job, seconds=900 + 120 * (ROUNDS - 1))
    assert done.state == "succeeded", f"{done.reason}\n{served.log(job)}"
    return done


def points(served: Served, job: Job) -> list[tuple[str, int, float | None]]:
    """Every metric of every step; MLflow itself is asked, because it would keep what is there twice."""
    assert job.mlflow is not None
    names = [
        m["key"] for m in served.mlflow_get("runs/get", run_id=job.mlflow.run_id)["run"]["data"]["metrics"]
    ]
    found = [
        (point["key"], point["step"], point["value"])
        for name in names
        if not name.startswith("system/")
        for point in served.mlflow_get(
            "metrics/get-history", run_id=job.mlflow.run_id, metric_key=name, max_results="25000"
        )["metrics"]
    ]
    counted = Counter(found)
    assert set(counted.values()) == {1}
    assert [step for name, step, _ in sorted(found) if name == "train_loss"] == list(range(1, STEPS + 1))
    return sorted(found)


def weights(served: Served, job: Job) -> str:
    """A digest of the bits of the model in MLflow, its parameters and buffers."""
    assert job.mlflow is not None
    script = """
import hashlib, sys, mlflow
mlflow.set_tracking_uri(sys.argv[1])
state = mlflow.pytorch.load_model(f"runs:/{sys.argv[2]}/model").state_dict()
digest = hashlib.sha256()
for name, value in sorted(state.items()):
    digest.update(name.encode() + value.numpy().tobytes())
print(len(state), digest.hexdigest())
"""
    done = subprocess.run(
        [sys.executable, "-c", script, served.mlflow, job.mlflow.run_id],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]
