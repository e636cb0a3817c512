"""Everything that a job consists of dies, on a real Ray: the right end or the right continuation, said as it
was, and nothing is left running.
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest

from service.client import Job
from service.dispatcher.process import command as scheduler_command
from service.embedded.processes import StackState
from service.user_code.pack import pack
from tests.e2e.stack import ENVIRONMENT, Stack
from tests.memory_cgroup import memory_cgroup

LAB = Path(__file__).parent.parent / "training" / "host" / "lab.py"
STEPS = 150


@pytest.fixture
def code(tmp_path: Path) -> Path:
    folder = tmp_path / "code"
    folder.mkdir()
    (folder / "lab.py").write_text(LAB.read_text())
    (folder / "note.txt").write_text("read me")
    return folder


def lab(what: str, argument: Any = None, *, at: int = 3, once: str = "", **changes: Any) -> dict[str, Any]:
    """Two ranks, of which rank 1 does `what` in step `at`; six steps, unless said otherwise."""
    arguments = {"what": what, "argument": argument, "at": at, "once": once, "pace": changes.pop("pace", 0.0)}
    training = {"global_batch_size": 2, "max_steps": 6, "checkpoint": {"every_steps": 5}}
    return {
        "name": what.replace(" ", "-"),
        "model": {"class_path": "lab.Does", "init_args": arguments},
        "data": {"class_path": "lab.Data"},
        "metrics": {},
        "training": training | changes.pop("training", {}),
        "resources": {"workers": 2, "cpus_per_worker": 0.5},
        "retries": 0,
    } | changes


def submit(stack: Stack, code: Path, spec: Mapping[str, Any]) -> Job:
    with stack.client() as client:
        return client.submit({**spec, "code": client.upload_code(pack(code))})


def ended(stack: Stack, job: Job) -> Job:
    with stack.client() as client:
        done = client.wait(job.id, timeout=300)
    nothing_runs(stack)
    return done


def log_of(stack: Stack, job: Job, rank: int = 1) -> str:
    with stack.client() as client:
        return client.logs(job.id, rank=rank)


def until(is_so: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 120
    while not is_so():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def until_step(stack: Stack, job: Job, step: int) -> None:
    def is_there() -> bool:
        with stack.client() as client:
            now = client.job(job.id)
        assert not now.ended, now.reason
        return now.state == "running" and now.progress is not None and now.progress.step >= step

    until(is_there, f"{job.id} did not come to step {step}")


def named(stack: Stack, text: str) -> list[psutil.Process]:
    found = []
    for process in stack.processes():
        try:
            if text in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def agent(stack: Stack) -> psutil.Process:
    (found,) = named(stack, "HostAgent")
    return found


def fork_server(stack: Stack) -> psutil.Process:
    (found,) = (
        child
        for child in agent(stack).children()
        if "multiprocessing.forkserver" in " ".join(child.cmdline())
    )
    return found


def scheduler(stack: Stack) -> psutil.Process:
    (found,) = named(stack, "service.dispatcher.process")
    return found


def nothing_runs(stack: Stack) -> None:
    """No rank, nor anything that ranks had started."""
    until(lambda: fork_server(stack).children(recursive=True) == [], "something of a job is left")


@pytest.mark.parametrize(
    ("what", "argument", "type", "said"),
    [
        ("kill", "SIGKILL", "SIGKILL", "rank 1 was killed by SIGKILL at step 3"),
        ("segfault", None, "SIGSEGV", "rank 1 was killed by SIGSEGV at step 3"),
        ("abort", None, "SIGABRT", "rank 1 was killed by SIGABRT at step 3"),
        ("_exit", 7, "Exited", "rank 1 exited with code 7 at step 3"),
        ("exit", 3, "Exited", "rank 1 exited with code 3 at step 3"),
        ("_exit", 0, "Exited", "rank 1 exited with code 0 at step 3"),
        (
            "raise undecodable",
            None,
            "ValueError",
            "rank 1 failed at step 3: ValueError: cannot read image",
        ),
        ("raise long", 3_000_000, "ValueError", "rank 1 failed at step 3: ValueError: xxxx"),
        (
            "speak for the service",
            None,
            "RuntimeError",
            "rank 1 failed at step 3: RuntimeError: the user's",
        ),
    ],
)
def test_end_of_a_rank_is_told_as_it_was(
    stack: Stack, code: Path, what: str, argument: Any, type: str, said: str
) -> None:
    done = ended(stack, submit(stack, code, lab(what, argument)))

    assert done.state == "failed"
    assert done.error is not None
    assert (done.error.type, done.error.rank, done.error.step) == (type, 1, 3)
    assert (done.reason or "").startswith(said)
    assert len(done.reason or "") <= 10_000
    assert "rank 1 of 2 on" in log_of(stack, done)


def test_memory_that_runs_out_is_told_from_a_kill(stack: Stack, code: Path) -> None:
    with memory_cgroup() as cgroup:
        if cgroup is None:
            pytest.skip("no memory cgroup can be made here, so the kernel kills nobody")
        done = ended(stack, submit(stack, code, lab("run out of memory", str(cgroup))))

    assert done.error is not None
    assert (done.error.type, done.error.rank, done.error.step) == ("OutOfMemory", 1, 3)
    assert "memory ran out" in (done.reason or "")


def test_a_rank_that_dies_once_costs_a_retry_and_no_attempt(stack: Stack, code: Path, tmp_path: Path) -> None:
    spec = lab("segfault", at=8, once=str(tmp_path / "once"), retries=1, training={"max_steps": 20})

    done = ended(stack, submit(stack, code, spec))

    assert (done.state, done.attempt) == ("succeeded", 1)
    with stack.client() as client:
        steps = [point.step for point in client.metrics(done.id, ["train_loss"])]
        log = client.logs(done.id)
    assert steps == list(range(1, 21))
    assert (
        "rank 1 was killed by SIGSEGV at step 8; starting again from the last checkpoint (1 of 1 retry" in log
    )
    assert "going on from the checkpoint of step 5" in log


@pytest.fixture
def long_job(stack: Stack, code: Path) -> Iterator[Job]:
    """One that trains for some time yet."""
    job = submit(stack, code, lab("nothing", pace=0.1, training={"max_steps": STEPS}, retries=1))
    until_step(stack, job, 10)
    yield job
    with stack.client() as client:
        if not client.job(job.id).ended:
            client.cancel(job.id)
            client.wait(job.id, timeout=120)


def succeeded_once(stack: Stack, job: Job, *, attempts: int = 1) -> None:
    done = ended(stack, job)
    assert (done.state, done.attempt) == ("succeeded", attempts), done.reason
    with stack.client() as client:
        steps = Counter(point.step for point in client.metrics(job.id, ["train_loss"]))
    assert steps == Counter(range(1, STEPS + 1))


def test_ranks_train_on_while_no_scheduler_is_there(stack: Stack, long_job: Job) -> None:
    scheduler(stack).kill()

    succeeded_once(stack, long_job)
    assert "going on from the checkpoint" not in log_of(stack, long_job, rank=0)


def test_orders_of_a_scheduler_that_another_has_followed_are_refused(stack: Stack, long_job: Job) -> None:
    """It is stopped for longer than its lease lasts, and goes on as if nothing had happened."""
    first = scheduler(stack)
    second = second_scheduler(stack)
    try:
        first.suspend()
        log = stack.folder / "logs" / "second-scheduler.log"
        until(lambda: "at work as number" in log.read_text(), "the second one did not take over")
        time.sleep(5)
        first.resume()

        succeeded_once(stack, long_job)
        assert "going on from the checkpoint" not in log_of(stack, long_job, rank=0)
        assert first.is_running()
        assert "is no longer at work" in (stack.folder / "logs" / "scheduler.log").read_text()
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


def test_an_agent_that_is_killed_costs_its_ranks_and_an_attempt(stack: Stack, long_job: Job) -> None:
    below = fork_server(stack).children(recursive=True)

    agent(stack).kill()

    _, left = psutil.wait_procs(below, 30)
    assert [process for process in left if process.status() != psutil.STATUS_ZOMBIE] == []
    succeeded_once(stack, long_job, attempts=2)
    assert "going on from the checkpoint" in log_of(stack, long_job, rank=0)


def test_ranks_outlive_the_fork_server_and_the_next_job_has_a_new_one(
    stack: Stack, long_job: Job, code: Path
) -> None:
    fork_server(stack).kill()
    time.sleep(1)

    after = submit(stack, code, lab("nothing"))
    with stack.client() as client:
        assert client.wait(after.id, timeout=300).state == "succeeded"
    succeeded_once(stack, long_job)
    assert "going on from the checkpoint" not in log_of(stack, long_job, rank=0)


@pytest.mark.parametrize("end", ["finish", "cancel", "fail"])
def test_a_daemon_in_a_session_of_its_own_with_an_empty_environment_goes_with_its_job(
    stack: Stack, code: Path, tmp_path: Path, end: str
) -> None:
    pids = tmp_path / "pids"
    steps = {"finish": 6, "cancel": 1_000_000, "fail": 6}[end]
    job = submit(stack, code, lab("leave daemons", str(pids), training={"max_steps": steps}))
    until(pids.exists, "no daemon was started")
    if end == "cancel":
        with stack.client() as client:
            client.cancel(job.id)

    ended(stack, job)

    assert not psutil.pid_exists(int(pids.read_text()))


def test_a_job_has_its_folder_its_environment_and_every_line_it_prints(
    stack: Stack, code: Path, tmp_path: Path
) -> None:
    seen = tmp_path / "environment"
    given = ended(stack, submit(stack, code, lab("print environment", str(seen))))
    reads = ended(stack, submit(stack, code, lab("read note")))
    prints = ended(stack, submit(stack, code, lab("print lines", 100_000)))

    assert {given.state, reads.state, prints.state} == {"succeeded"}
    environment = seen.read_text()
    assert StackState.load(stack.folder).token not in environment
    assert "SYNCBN_" not in environment
    assert re.search(rf"^PATH=.*{re.escape(os.environ['PATH'])}$", environment, re.MULTILINE)
    assert "the note says read me\n" in log_of(stack, reads)
    lines = [line for line in log_of(stack, prints).splitlines() if line.endswith("xxx")]
    assert lines == [f"{number:08} {'x' * 90}" for number in range(100_000)]


def test_code_that_hides_a_module_is_refused_by_name(stack: Stack, code: Path) -> None:
    (code / "random.py").write_text("")
    (code / "mlflow.py").write_text("")
    (code / "spec.yaml").write_text("model: {class_path: lab.Does}\ndata: {class_path: lab.Data}\n")

    done = stack.cli("submit", str(code / "spec.yaml"), "--code", str(code))

    assert done.returncode == 2
    assert "random.py" in done.stderr
    assert "mlflow.py" in done.stderr
    assert "rename it" in done.stderr


def test_cancel_ends_a_job_that_does_nothing_any_more(stack: Stack, code: Path) -> None:
    job = submit(stack, code, lab("sleep", 10_000))
    until(lambda: log_of(stack, job) != "", "it did not begin")

    with stack.client() as client:
        client.cancel(job.id)

    assert ended(stack, job).state == "cancelled"


@pytest.mark.skipif(
    os.environ.get("SYNCBN_TEST_CLOCK") != "step",
    reason="steps the clock of the whole machine: SYNCBN_TEST_CLOCK=step, as root, where nobody minds",
)
@pytest.mark.parametrize("hours", [1, -1])
def test_nothing_happens_when_the_clock_steps(stack: Stack, long_job: Job, hours: int) -> None:
    before = {process.pid for process in stack.processes()}
    time.clock_settime(time.CLOCK_REALTIME, time.time() + 3600 * hours)
    try:
        time.sleep(10)
        assert before <= {process.pid for process in stack.processes()}
        succeeded_once(stack, long_job)
    finally:
        time.clock_settime(time.CLOCK_REALTIME, time.time() - 3600 * hours)
    time.sleep(5)
    assert stack.is_ready()
