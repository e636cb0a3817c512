"""Real ranks, forked by an agent in this process, that meet with everything that can happen to a process."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.memory_cgroup import memory_cgroup
from training.host.agent import HostAgent
from training.host.environment import machine_variables
from training.host.fork_server import PRELOAD
from training.protocol import (
    CodeMissing,
    Exit,
    ExitRecord,
    Order,
    RankAssignment,
    StartStatus,
    cause,
    finished,
    is_final,
    log_file,
    stopped_at,
)

LAB = Path(__file__).parent / "lab.py"
SECRET = "of the service alone"


@pytest.fixture(scope="module")
def agent(
    full_run: None,  # noqa: ARG001
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[HostAgent]:
    environment = machine_variables(os.environ | {"SYNCBN_API_KEY": SECRET, "RAY_AUTH_TOKEN": SECRET})
    agent = HostAgent(tmp_path_factory.mktemp("agent"), environment, on_cluster=False)
    agent.put_code("lab", archive())
    # Its fork server starts with an environment that this process has for a moment: pytest sets its own
    # variables meanwhile, if it is not waited for.
    while not agent.news(-1, 0.0).warm:
        time.sleep(0.05)
    yield agent
    agent.close()


def archive() -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as packed:
        packed.write(LAB, "lab.py")
        packed.writestr("note.txt", "read me")
    return content.getvalue()


NAMES = (f"test-{number}" for number in range(1, 10_000))


def order(folder: Path, what: str = "nothing", argument: Any = None, **changes: Any) -> Order:
    """Two ranks that make six steps, the second of which does `what` in the third."""
    model = {"what": what, "argument": argument} | changes.pop("model", {})
    training = {"global_batch_size": 2, "max_epochs": 1} | changes.pop("training", {})
    fields: dict[str, Any] = {
        "attempt": next(NAMES),
        "spec": {
            "model": {"class_path": "lab.Does", "init_args": model},
            "data": {"class_path": "lab.Data"},
            "metrics": {},
            "training": training,
            "resources": {"workers": 2, "cpus_per_worker": 1, "gpus_per_worker": 0},
        },
        "ranks": tuple(RankAssignment(rank=rank, local_rank=rank, node_rank=0) for rank in (0, 1)),
        "world_size": 2,
        "folder": str(folder / "run"),
        "output": str(folder / "output"),
        "curves_only": True,
        "code": "lab",
    }
    return Order(**fields | changes)


def until(
    agent: HostAgent, attempt: str, is_so: Callable[[StartStatus], bool] = lambda status: status.ended
) -> StartStatus:
    deadline, seen = time.monotonic() + 120, -1
    while True:
        news = agent.news(seen, 0.2)
        seen = news.version
        (status,) = (status for status in news.starts if status.attempt == attempt)
        if is_so(status):
            return status
        assert time.monotonic() < deadline, status


def run(agent: HostAgent, given: Order) -> StartStatus:
    agent.launch(given)
    return until(agent, given.attempt)


def failure(agent: HostAgent, given: Order) -> ExitRecord:
    status = run(agent, given)
    assert not finished(status.exits, 2)
    found = cause(status.exits)
    assert found is not None
    assert below_fork_server() == []
    return found


def below_fork_server() -> list[psutil.Process]:
    """Everything that ranks, or whoever has forked them, have left."""
    servers = [child for child in psutil.Process().children() if PRELOAD in " ".join(child.cmdline())]
    left = [process for server in servers for process in server.children(recursive=True)]
    return [process for process in left if process.status() != psutil.STATUS_ZOMBIE]


def log(given: Order, rank: int) -> str:
    return log_file(given.folder, given.number, rank).read_text()


def test_ranks_train_to_their_end_and_tell_their_progress(agent: HostAgent, tmp_path: Path) -> None:
    given = order(tmp_path)

    status = run(agent, given)

    assert finished(status.exits, 2)
    assert status.joined
    assert status.progress is not None
    assert (status.progress.step, status.progress.total_steps) == (6, 6)
    assert "train_loss" in status.progress.metrics
    assert {record.step for record in status.exits} == {6}
    assert below_fork_server() == []


@pytest.mark.parametrize(
    ("what", "argument", "kind", "type", "code"),
    [
        ("kill", "SIGKILL", Exit.SIGNAL, "SIGKILL", None),
        ("kill", "SIGTERM", Exit.SIGNAL, "SIGTERM", None),
        ("segfault", None, Exit.SIGNAL, "SIGSEGV", None),
        ("abort", None, Exit.SIGNAL, "SIGABRT", None),
        ("_exit", 7, Exit.EXITED, "", 7),
        ("_exit", 0, Exit.EXITED, "", 0),
        ("exit", 3, Exit.EXITED, "", 3),
        ("exit", None, Exit.EXITED, "", 0),
        ("exit", 300, Exit.EXITED, "", 44),
        ("exit", "my last words", Exit.EXITED, "", 1),
        ("allow no files and raise", None, Exit.ERROR, "ValueError", None),
        ("allow no bytes", None, Exit.ERROR, "ValueError", None),
        ("kill", "SIGINT", Exit.ERROR, "KeyboardInterrupt", None),
    ],
)
def test_each_end_is_told_with_rank_step_and_what_it_was(
    agent: HostAgent, tmp_path: Path, what: str, argument: Any, kind: Exit, type: str, code: int | None
) -> None:
    found = failure(agent, order(tmp_path, what, argument))

    assert (found.rank, found.step) == (1, 3)
    assert (found.kind, found.type, found.code) == (kind, type, code)


@pytest.mark.parametrize(("error", "repeats"), [("ValueError", True), ("ConnectionResetError", False)])
def test_an_error_of_a_constructor_is_final_unless_it_comes_from_outside(
    agent: HostAgent, tmp_path: Path, error: str, repeats: bool
) -> None:
    given = order(tmp_path)
    spec = given.spec | {"model": {"class_path": "lab.Unbuildable", "init_args": {"error": error}}}

    found = failure(agent, replace(given, spec=spec))

    assert (found.kind, found.type, found.repeats) == (Exit.ERROR, error, repeats)
    assert is_final(found, None) == ("" if repeats else None)


def test_the_progress_of_a_killed_rank_is_that_of_its_last_step(agent: HostAgent, tmp_path: Path) -> None:
    status = run(agent, order(tmp_path, "kill", "SIGKILL", model={"rank": 0, "at": 5}))

    assert status.progress is not None
    assert status.progress.step == 4


def test_a_rank_that_the_kernel_kills_for_memory_is_told_from_one_that_was_killed(
    agent: HostAgent, tmp_path: Path
) -> None:
    with memory_cgroup() as cgroup:
        if cgroup is None:
            pytest.skip("no memory cgroup can be made here, so the kernel kills nobody")

        found = failure(agent, order(tmp_path, "run out of memory", str(cgroup)))

    assert (found.kind, found.type, found.rank, found.step) == (Exit.OUT_OF_MEMORY, "SIGKILL", 1, 3)


def test_a_rank_over_its_memory_limit_is_killed_with_its_children(agent: HostAgent, tmp_path: Path) -> None:
    """A gigabyte in a child process of rank 1; the others stay below the limit."""
    given = order(tmp_path, "use memory in a child", 2**30)
    given.spec["resources"]["memory_per_worker"] = 700 * 2**20

    found = failure(agent, given)

    assert (found.kind, found.type, found.rank, found.step) == (Exit.OUT_OF_MEMORY, "SIGKILL", 1, 3)
    assert "GiB of memory, more than resources.memory_per_worker, which is 0.684 GiB" in found.headline


def test_the_last_lines_of_its_log_are_in_the_record(agent: HostAgent, tmp_path: Path) -> None:
    given = order(tmp_path, "exit", "my last words")

    found = failure(agent, given)

    assert found.headline == "rank 1 exited with code 1 at step 3: sys.exit: my last words"
    assert "SystemExit: my last words" in found.log_tail
    assert "lab.py" in found.log_tail


def test_a_message_that_is_no_text_is_told_with_its_bytes_escaped(agent: HostAgent, tmp_path: Path) -> None:
    found = failure(agent, order(tmp_path, "raise undecodable"))

    assert (found.kind, found.type) == (Exit.ERROR, "ValueError")
    assert r"caf\udce9.png \x00 \ud800" in found.message


def test_a_long_message_is_bounded_and_whole_in_the_log(agent: HostAgent, tmp_path: Path) -> None:
    given = order(tmp_path, "raise long", 3_000_000)

    found = failure(agent, given)

    assert len(found.message) < 5_000
    assert "the log has them" in found.message
    assert "x" * 3_000_000 in log(given, 1)


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("what", ["close output", "break output"])
def test_a_training_ends_well_whatever_becomes_of_its_output(
    agent: HostAgent, tmp_path: Path, what: str, rank: int
) -> None:
    given = order(tmp_path, what, model={"rank": rank})

    status = run(agent, given)

    assert finished(status.exits, 2)
    assert "step 6/6" in log(given, 0)


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize(
    ("what", "argument"),
    [
        ("raise in a child", None),
        ("exit in a child", 5),
        ("fail in a worker", None),
        ("allow no files", None),
    ],
)
def test_the_end_of_a_child_is_not_that_of_its_rank(
    agent: HostAgent, tmp_path: Path, what: str, argument: Any, rank: int
) -> None:
    given = order(tmp_path, what, argument, model={"rank": rank})

    status = run(agent, given)

    assert finished(status.exits, 2)
    assert status.progress is not None
    assert status.progress.step == 6
    lines = (tmp_path / "output" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4, 5, 6]


def test_functions_at_exit_that_do_not_end_hold_up_nobody_for_long(agent: HostAgent, tmp_path: Path) -> None:
    given = order(tmp_path, "hang at exit")

    status = run(agent, given)

    assert finished(status.exits, 2)
    assert "did not return within" in log(given, 1)
    assert below_fork_server() == []


@pytest.mark.parametrize(
    ("what", "argument", "type", "message"),
    [
        ("raise unspeakable", None, "Unspeakable", "(its message cannot be shown: TypeError)"),
        (
            "raise as gloo does",
            None,
            "ValueError",
            "[../gloo/transport/tcp/pair.cc:534] Connection closed by peer",
        ),
        ("raise without output", None, "ValueError", "nobody hears"),
    ],
)
def test_an_exception_is_told_however_odd_it_is(
    agent: HostAgent, tmp_path: Path, what: str, argument: Any, type: str, message: str
) -> None:
    given = order(tmp_path, what, argument)

    found = failure(agent, given)

    assert (found.rank, found.step, found.type, found.message) == (1, 3, type, message)
    assert not found.lost_peer
    assert f"{type}: " in log(given, 1)
    assert "Traceback" in log(given, 1)


def test_a_long_name_of_a_class_is_bounded(agent: HostAgent, tmp_path: Path) -> None:
    found = failure(agent, order(tmp_path, "raise with a long name", 100_000))

    assert found.type.startswith("EEE")
    assert len(found.type) < 400


def test_nothing_that_a_job_prints_means_anything(agent: HostAgent, tmp_path: Path) -> None:
    found = failure(agent, order(tmp_path, "speak for the service"))

    assert (found.type, found.message) == ("RuntimeError", "the user's own")


def test_a_rank_has_the_environment_of_the_machine_and_none_of_the_service(
    agent: HostAgent, tmp_path: Path
) -> None:
    seen = tmp_path / "environment"

    run(agent, order(tmp_path, "print environment", str(seen), variables={"GIVEN": "to the job"}))

    text = seen.read_text()
    assert SECRET not in text
    assert "GIVEN=to the job\n" in text
    assert f"PATH={os.environ['PATH']}\n" in text
    assert "PYTEST_CURRENT_TEST" not in text


def test_uploaded_code_is_the_working_directory(agent: HostAgent, tmp_path: Path) -> None:
    given = order(tmp_path, "read note")

    assert finished(run(agent, given).exits, 2)
    assert "the note says read me\n" in log(given, 1)


def test_processes_of_a_loader_are_forked_from_the_rank(agent: HostAgent, tmp_path: Path) -> None:
    given = order(tmp_path, "load in a process")

    assert finished(run(agent, given).exits, 2)
    assert "loaded [0] [1] [2]\n" in log(given, 1)


def test_every_line_is_in_the_log(agent: HostAgent, tmp_path: Path) -> None:
    given = order(tmp_path, "print lines", 50_000)

    assert finished(run(agent, given).exits, 2)
    lines = [line for line in log(given, 1).splitlines() if line.endswith("xxx")]
    assert lines == [f"{number:08} {'x' * 90}" for number in range(50_000)]


@pytest.mark.parametrize("what", ["end", "finish"])
def test_a_daemon_with_an_empty_environment_goes_with_the_start(
    agent: HostAgent, tmp_path: Path, what: str
) -> None:
    pids = tmp_path / "pids"
    given = order(
        tmp_path, "leave daemons", str(pids), training={"max_epochs": 10_000 if what == "end" else 1}
    )
    agent.launch(given)
    if what == "end":
        until(agent, given.attempt, lambda _: pids.exists())
        agent.end(given.attempt)
    until(agent, given.attempt)

    assert not psutil.pid_exists(int(pids.read_text()))
    assert below_fork_server() == []


def test_a_start_is_launched_once_and_the_next_one_goes_on(agent: HostAgent, tmp_path: Path) -> None:
    given = order(tmp_path, "kill", "SIGKILL", model={"once": str(tmp_path / "done")})
    agent.launch(given)
    agent.launch(given)
    assert cause(until(agent, given.attempt).exits) is not None
    agent.launch(given)  # what has ended is not begun again
    assert until(agent, given.attempt).ended

    again = Order(**{**given.__dict__, "start": 2})
    agent.launch(again)
    status = until(agent, given.attempt, lambda status: status.start == 2 and status.ended)

    assert finished(status.exits, 2)
    assert log(given, 0).count("Does on 2 workers: training") == 2


def test_a_run_that_is_asked_to_stop_saves_itself(agent: HostAgent, tmp_path: Path) -> None:
    given = order(tmp_path, training={"max_epochs": 10_000})
    agent.launch(given)
    until(agent, given.attempt, lambda status: status.progress is not None and status.progress.step > 1)

    agent.stop(given.attempt, seconds=60)
    status = until(agent, given.attempt)

    step = stopped_at(status.exits)
    assert step is not None
    assert step > 1
    assert (tmp_path / "run" / "checkpoints").exists()


def test_a_run_that_reaches_its_time_limit_saves_itself_and_is_not_retried(
    agent: HostAgent, tmp_path: Path
) -> None:
    given = order(tmp_path, training={"max_epochs": 10_000}, seconds_left=10.0)
    given.spec["time_limit"] = {"run": 7200.0, "queue": None}

    status = run(agent, given)

    found = cause(status.exits)
    assert found is not None
    assert found.kind is Exit.TIMED_OUT
    assert found.step > 1
    assert "has run for 2h, its time limit; its last checkpoint is kept" in found.headline
    assert is_final(found, None) == ""
    assert status.seconds >= 10.0
    assert (tmp_path / "run" / "checkpoints").exists()


def test_a_run_that_makes_no_progress_is_not_waited_for(agent: HostAgent, tmp_path: Path) -> None:
    asleep = tmp_path / "asleep"
    training = {"max_epochs": 10_000}
    given = order(tmp_path, "sleep", 1000, training=training, model={"once": str(asleep)})
    agent.launch(given)
    until(agent, given.attempt, lambda _: asleep.exists())

    agent.stop(given.attempt, seconds=1)
    status = until(agent, given.attempt)

    assert cause(status.exits) is None
    assert stopped_at(status.exits) is None


def test_a_hang_is_told_with_every_rank_s_stack(agent: HostAgent, tmp_path: Path) -> None:
    found = failure(agent, order(tmp_path, "sleep", 1000, training={"hang_seconds": 2}))

    assert (found.kind, found.blamed_rank, found.step) == (Exit.HUNG, 1, 3)
    assert "time.sleep(seconds)" in found.message
    assert "rank 0" in found.message


def test_without_its_supervisor_a_start_is_lost_and_leaves_nothing(agent: HostAgent, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    given = order(tmp_path, "leave daemons", str(pids), training={"max_epochs": 10_000})
    agent.launch(given)
    until(agent, given.attempt, lambda _: pids.exists())
    ranks = [process for process in below_fork_server() if process.name() != "sleep"]
    supervisor = next(process for process in ranks if process.parent() not in ranks)

    supervisor.kill()
    status = until(agent, given.attempt)

    assert {record.kind for record in status.exits} == {Exit.LOST}
    assert all("was lost at step" in record.headline for record in status.exits)
    assert all(f"rank {record.rank} of 2" in record.log_tail for record in status.exits)
    gone(ranks)
    deadline = time.monotonic() + 60
    while psutil.pid_exists(int(pids.read_text())):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_ranks_outlive_the_fork_server_and_others_are_forked_from_a_new_one(
    agent: HostAgent, tmp_path: Path
) -> None:
    (tmp_path / "a").mkdir()
    given = order(tmp_path / "a", "sleep", 2)
    agent.launch(given)
    until(agent, given.attempt, lambda status: status.progress is not None)
    (server,) = (child for child in psutil.Process().children() if PRELOAD in " ".join(child.cmdline()))

    server.kill()
    until(agent, given.attempt, lambda _: server.status() == psutil.STATUS_ZOMBIE)

    assert finished(until(agent, given.attempt).exits, 2)
    assert finished(run(agent, order(tmp_path / "b")).exits, 2)


AGENT = """
import sys, time
from pathlib import Path
from tests.memory_cgroup import memory_cgroup
from training.host.agent import HostAgent
from training.protocol import Order
import json
agent = HostAgent(Path(sys.argv[1]), on_cluster=False)
agent.put_code("lab", Path(sys.argv[2]).read_bytes())
agent.launch(Order.from_json(json.loads(sys.argv[3])))
time.sleep(1000)
"""


def test_everything_ends_with_an_agent_that_is_killed(tmp_path: Path) -> None:
    (tmp_path / "lab.zip").write_bytes(archive())
    pids = tmp_path / "pids"
    given = order(tmp_path, "leave daemons", str(pids), training={"max_epochs": 10_000})
    arguments = [str(tmp_path / "agent"), str(tmp_path / "lab.zip"), json.dumps(given.to_json())]
    process = subprocess.Popen([sys.executable, "-c", AGENT, *arguments])
    deadline = time.monotonic() + 120
    while not pids.exists():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    below = psutil.Process(process.pid).children(recursive=True)

    process.send_signal(signal.SIGKILL)
    process.wait()

    gone(below)
    assert not psutil.pid_exists(int(pids.read_text()))


def gone(processes: list[psutil.Process]) -> None:
    _, left = psutil.wait_procs(processes, 60)
    assert [process for process in left if process.status() != psutil.STATUS_ZOMBIE] == []


def test_code_that_the_agent_has_not_got_is_asked_for(agent: HostAgent, tmp_path: Path) -> None:
    with pytest.raises(CodeMissing):
        agent.launch(order(tmp_path, code="0" * 64))


def test_what_cannot_be_started_ends_with_the_reason(agent: HostAgent, tmp_path: Path) -> None:
    agent.put_code("broken", b"no zip archive")

    found = failure(agent, order(tmp_path, code="broken"))

    assert found.type == "LaunchFailed"
    assert "zip" in found.message
