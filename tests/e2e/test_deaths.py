"""What a job consists of dies, on a real Ray: the right end or the right continuation, said as it was, and
nothing is left running. Each end of a rank by itself: tests/training/host/test_agent.py.
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from service.client import Job
from service.dispatcher.process import command as scheduler_command
from service.embedded.processes import StackState
from tests.e2e.stack import ENVIRONMENT, Stack, until
from tests.training.host.test_agent import LAB

STEPS = 400


@pytest.fixture(scope="module")
def code(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("code")
    (folder / "lab.py").write_text(LAB.read_text())
    return folder


def lab(
    what: str, argument: Any = None, *, steps: int = 6, hurry: str = "", **changes: Any
) -> dict[str, Any]:
    """Two ranks, of which rank 1 does `what` in step 3."""
    return {
        "name": what.replace(" ", "-"),
        "model": {
            "class_path": "lab.Does",
            "init_args": {"what": what, "argument": argument, "hurry": hurry},
        },
        "data": {"class_path": "lab.Data"},
        "metrics": {},
        "training": {"global_batch_size": 2, "max_steps": steps, "checkpoint": {"every_steps": 5}},
        "resources": {"workers": 2, "cpus_per_worker": 0.5},
        "retries": 0,
    } | changes


def ended(stack: Stack, job: Job) -> Job:
    """No rank is left, nor anything that ranks had started."""
    done = stack.ended(job)
    until(lambda: stack.fork_server().children(recursive=True) == [], "something of a job is left")
    return done


@pytest.mark.parametrize(
    ("what", "argument", "type", "said"),
    [
        ("kill", "SIGKILL", "SIGKILL", "rank 1 was killed by SIGKILL at step 3"),
        ("_exit", 0, "Exited", "rank 1 exited with code 0 at step 3"),
        ("raise undecodable", None, "ValueError", "rank 1 failed at step 3: ValueError: cannot read image"),
        ("speak for the service", None, "RuntimeError", "rank 1 failed at step 3: RuntimeError: the user's"),
    ],
)
def test_end_of_a_rank_is_told_as_it_was(
    stack: Stack, code: Path, what: str, argument: Any, type: str, said: str
) -> None:
    done = ended(stack, stack.submit(lab(what, argument), code))

    assert done.state == "failed"
    assert done.error is not None
    assert (done.error.type, done.error.rank, done.error.step) == (type, 1, 3)
    assert (done.reason or "").startswith(said)
    assert "rank 1 of 2 on" in stack.log(done, rank=1)


class LongJob:
    """One that trains until it is told to hurry, and whose ranks nothing may touch."""

    def __init__(self, stack: Stack, code: Path, folder: Path) -> None:
        self.stack, self.hurry = stack, folder / "hurry"
        self.job = stack.submit(lab("nothing", steps=STEPS, hurry=str(self.hurry), retries=1), code)

    def succeeds_undisturbed(self) -> None:
        """Every step was made once, and none was lost in between."""
        self.stack.until(self.job, lambda job: job.state == "running")
        self.hurry.touch()
        done = ended(self.stack, self.job)
        assert (done.state, done.attempt) == ("succeeded", 1), done.reason
        with self.stack.client() as client:
            steps = Counter(point.step for point in client.metrics(done.id, ["train_loss"]))
        assert steps == Counter(range(1, STEPS + 1))
        assert "going on from the checkpoint" not in self.stack.log(done, rank=0)


@pytest.fixture
def long_job(stack: Stack, code: Path, tmp_path: Path) -> Iterator[LongJob]:
    long_job = LongJob(stack, code, tmp_path)
    try:
        stack.until_step(long_job.job, 3)
        yield long_job
    finally:
        with stack.client() as client:
            if not client.job(long_job.job.id).ended:
                client.cancel(long_job.job.id)
                client.wait(long_job.job.id, timeout=120)


def test_ranks_train_on_while_the_api_the_scheduler_and_the_fork_server_die(
    stack: Stack, long_job: LongJob, code: Path
) -> None:
    stack.kill()
    stack.start()

    scheduler = stack.scheduler()
    scheduler.kill()
    until(lambda: scheduler.pid not in {each.pid for each in stack.processes()}, "it is still there")

    stack.fork_server().kill()
    time.sleep(1)
    after = stack.submit(lab("nothing"), code)
    assert stack.ended(after).state == "succeeded"  # by ranks of a new one

    long_job.succeeds_undisturbed()


def test_orders_of_a_scheduler_that_another_has_followed_are_refused(stack: Stack, long_job: LongJob) -> None:
    """It is stopped for longer than its lease lasts, and goes on as if nothing had happened."""
    first = stack.scheduler()
    second = second_scheduler(stack)
    logs = stack.folder / "logs"
    try:
        first.suspend()
        until(
            lambda: "at work as number" in (logs / "second-scheduler.log").read_text(),
            "the second one did not take over",
        )
        first.resume()
        until(lambda: "is no longer at work" in (logs / "scheduler.log").read_text(), "the first one goes on")

        long_job.succeeds_undisturbed()
        assert first.is_running()
    finally:
        first.resume()
        second.terminate()
        second.wait(60)


def second_scheduler(stack: Stack) -> subprocess.Popen[bytes]:
    """One that stands by, on the same queue, Ray and MLflow."""
    state = StackState.load(stack.folder)
    variables = {
        "SYNCBN_DATABASE_URL": f"sqlite:///{stack.folder / 'syncbn.db'}",
        "SYNCBN_RAY_ADDRESS": state.ray_address,
        "SYNCBN_RAY_TOKEN": state.token,
        "SYNCBN_MLFLOW_URL": stack.mlflow,
        "SYNCBN_STORAGE": str(stack.folder / "checkpoints"),
    }
    with (stack.folder / "logs" / "second-scheduler.log").open("ab") as log:
        return subprocess.Popen(scheduler_command(), env=ENVIRONMENT | variables, stdout=log, stderr=log)


def test_a_cancelled_job_takes_its_daemons_with_it(stack: Stack, code: Path, tmp_path: Path) -> None:
    """In sessions of their own, with empty environments."""
    pids = tmp_path / "pids"
    job = stack.submit(lab("leave daemons", str(pids), steps=1_000_000), code)
    until(lambda: pids.exists() and pids.read_text() != "", "no daemon was started")

    with stack.client() as client:
        client.cancel(job.id)

    assert ended(stack, job).state == "cancelled"
    assert not psutil.pid_exists(int(pids.read_text()))


def test_a_job_has_its_environment_and_every_line_it_prints(stack: Stack, code: Path, tmp_path: Path) -> None:
    seen = tmp_path / "environment"
    given = stack.submit(lab("print environment", str(seen)), code)
    prints = stack.submit(lab("print lines", 100_000), code)

    assert {ended(stack, job).state for job in (given, prints)} == {"succeeded"}
    environment = seen.read_text()
    assert StackState.load(stack.folder).token not in environment
    assert "SYNCBN_" not in environment
    assert re.search(rf"^PATH=.*{re.escape(os.environ['PATH'])}$", environment, re.MULTILINE)
    lines = [line for line in stack.log(prints, rank=1).splitlines() if line.endswith("xxx")]
    assert lines == [f"{number:08} {'x' * 90}" for number in range(100_000)]


def test_cancel_ends_a_job_that_does_nothing_any_more(stack: Stack, code: Path) -> None:
    job = stack.submit(lab("sleep", 10_000), code)
    until(lambda: stack.log(job) != "", "it did not begin")

    with stack.client() as client:
        client.cancel(job.id)

    assert ended(stack, job).state == "cancelled"


@pytest.mark.skipif(
    os.environ.get("SYNCBN_TEST_CLOCK") != "step",
    reason="steps the clock of the whole machine: SYNCBN_TEST_CLOCK=step, as root, where nobody minds",
)
@pytest.mark.parametrize("hours", [1, -1])
def test_nothing_happens_when_the_clock_steps(stack: Stack, long_job: LongJob, hours: int) -> None:
    before = {process.pid for process in stack.processes()}
    time.clock_settime(time.CLOCK_REALTIME, time.time() + 3600 * hours)
    try:
        time.sleep(10)
        assert before <= {process.pid for process in stack.processes()}
        long_job.succeeds_undisturbed()
    finally:
        time.clock_settime(time.CLOCK_REALTIME, time.time() - 3600 * hours)
    time.sleep(5)
    assert stack.is_ready()
