"""Scripts as real ranks, forked by an agent in this process."""

from __future__ import annotations

import io
import json
import os
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from training.host.agent import HostAgent
from training.host.environment import machine_variables
from training.host.own_folder import own_folder
from training.protocol import (
    Exit,
    Failure,
    Order,
    RankAssignment,
    StartStatus,
    cause,
    finished,
    is_final,
    log_file,
)

PROGRAM = Path(__file__).parent / "lab_script.py"
NAMES = (f"script-{number}" for number in range(1, 1000))
WHERE_TORCH_COMPILES = """
import os
from pathlib import Path
from torch._inductor.runtime.cache_dir_utils import cache_dir
(Path(os.environ["SYNCBN_CHECKPOINT_DIR"]) / "folder").write_text(cache_dir())
"""


@pytest.fixture(scope="module")
def agent(
    full_run: None,  # noqa: ARG001
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[HostAgent]:
    environment = machine_variables(os.environ) | {"MASTER_PORT": "1", "RANK": "9"}
    agent = HostAgent(tmp_path_factory.mktemp("agent"), environment, on_cluster=False)
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as packed:
        packed.write(PROGRAM, "tools/program.py")
        packed.writestr("tools/beside.py", "VALUE = 'beside the script'")
    agent.put_code("lab", content.getvalue())
    while not agent.news(-1, 0.0).warm:
        time.sleep(0.05)
    yield agent
    agent.close()


def order(folder: Path, *args: str, **changes: Any) -> Order:
    fields: dict[str, Any] = {
        "attempt": next(NAMES),
        "spec": {
            "script": {"path": "tools/program.py", "args": list(args), "grace_seconds": 30},
            "resources": {"workers": 2, "cpus_per_worker": 1, "gpus_per_worker": 0},
            "retries": 5,
        },
        "ranks": tuple(RankAssignment(rank=rank, local_rank=rank, node_rank=0) for rank in (0, 1)),
        "world_size": 2,
        "folder": str(folder / "run"),
        "code": "lab",
    }
    return Order(**fields | changes)


def until(
    agent: HostAgent, attempt: str, is_so: Callable[[StartStatus], bool], seconds: float = 120.0
) -> StartStatus:
    deadline, seen = time.monotonic() + seconds, -1
    while True:
        news = agent.news(seen, 0.2)
        seen = news.version
        (status,) = (status for status in news.starts if status.attempt == attempt)
        if is_so(status):
            return status
        if time.monotonic() >= deadline:
            raise TimeoutError(status)


def run(agent: HostAgent, given: Order) -> StartStatus:
    agent.launch(given)
    return until(agent, given.attempt, lambda status: status.ended)


def saved(given: Order) -> Path:
    return Path(given.folder) / "script-checkpoints"


def test_a_script_sees_what_it_would_under_torchrun(agent: HostAgent, tmp_path: Path) -> None:
    given = order(tmp_path, "look", "--lr", "0.1", mlflow_uri="http://mlflow.invalid", run_id="abc")

    status = run(agent, given)

    assert finished(status.exits, 2), log_file(given.folder, given.number, 0).read_text()
    assert status.joined
    ranks = [json.loads((saved(given) / f"exit-{rank}.json").read_text()) for rank in (0, 1)]
    for rank, seen in enumerate(ranks):
        variables, work = seen["environment"], Path(seen["cwd"])
        assert seen["argv"] == [str(work / "tools/program.py"), "look", "--lr", "0.1"]
        assert seen["path"] == [str(work / "tools"), str(work)]
        assert seen["beside"] == "beside the script"
        expected = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "GROUP_RANK": 0}
        assert {name: int(variables[name]) for name in expected} == expected
        assert variables["TORCHELASTIC_RUN_ID"] == "script"
        assert (variables["TORCHELASTIC_RESTART_COUNT"], variables["TORCHELASTIC_MAX_RESTARTS"]) == ("0", "5")
        assert (variables["MLFLOW_TRACKING_URI"], variables["MLFLOW_RUN_ID"]) == (given.mlflow_uri, "abc")
        assert "MLFLOW_HTTP_REQUEST_MAX_RETRIES" not in variables
        assert variables["OMP_NUM_THREADS"] == os.environ.get("OMP_NUM_THREADS", "1")
        assert seen["torchelastic"]
        assert seen["rank_zero_only"] == rank
        assert not seen["is child"]
        assert seen["running_mean"] == pytest.approx(0.05)  # 0.1 times the mean over both ranks
        assert (seen["spawned"], seen["unpickled"], seen["loaded"]) == (2 * rank, 7, 6.0)
        assert (saved(given) / f"thread-{rank}.json").exists()
    assert all(a != b for a, b in zip(*(seen["drawn"] for seen in ranks), strict=True))


def test_what_torch_compiles_is_out_of_the_reach_of_others(tmp_path: Path) -> None:
    agent = HostAgent(own_folder())  # as on a cluster
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as packed:
        packed.writestr("tools/program.py", WHERE_TORCH_COMPILES)
    agent.put_code("lab", content.getvalue())
    try:
        given = order(tmp_path)

        status = run(agent, given)

        assert finished(status.exits, 2), log_file(given.folder, given.number, 0).read_text()
        folder = Path((saved(given) / "folder").read_text())
        assert any(not parent.stat().st_mode & 0o077 for parent in folder.parents)
    finally:
        agent.close()


@pytest.mark.parametrize("how", ["sys.exit", "os._exit", "the end"])
def test_a_script_has_succeeded_if_its_exit_code_is_0(agent: HostAgent, tmp_path: Path, how: str) -> None:
    assert finished(run(agent, order(tmp_path, "finish", how)).exits, 2)


@pytest.mark.parametrize(
    ("how", "kind", "what", "retried"),
    [
        ("raise", Exit.ERROR, "failed: KeyError: 'ABSENT'", True),
        ("exit", Exit.EXITED, "exited with code 3: sys.exit was called", True),
        ("exit with text", Exit.EXITED, "exited with code 1: sys.exit: no such file", True),
        ("as a hang does", Exit.EXITED, "exited with code 75", True),
        ("kill", Exit.SIGNAL, "was killed by SIGKILL", True),
        ("import", Exit.ERROR, "failed: ModuleNotFoundError: No module named 'absent'", False),
        ("usage", Exit.EXITED, "exited with code 2: the script does not take its arguments", False),
    ],
)
def test_how_a_script_ended_is_told(
    agent: HostAgent, tmp_path: Path, how: str, kind: Exit, what: str, retried: bool
) -> None:
    given = order(tmp_path, "fail", how)

    record = cause(run(agent, given).exits)

    assert record is not None
    assert (record.kind, record.headline) == (kind, f"rank 1 {what}")
    # Whether it has done something since the same failure before is not known, so it is tried again.
    assert (is_final(record, Failure.of(record)) is None) == retried
    where, _, log = log_file(given.folder, given.number, 1).read_text().partition("\n")
    assert where.startswith("rank 1 of 2 on ")
    assert "training/rank" not in log
    assert ("Traceback" in log) == (kind is Exit.ERROR)
    assert (log == "no such file\n") == (how == "exit with text")


@pytest.mark.parametrize("exits", ["0", "143", "not"])
def test_a_script_that_is_asked_to_stop_gets_sigterm_and_goes_on_from_what_it_saved(
    agent: HostAgent, tmp_path: Path, exits: str
) -> None:
    given = order(tmp_path, "stop", exits)
    agent.launch(given)
    until(agent, given.attempt, lambda status: status.joined)
    while not all((saved(given) / f"ready-{rank}").exists() for rank in (0, 1)):
        time.sleep(0.05)

    agent.stop(given.attempt, seconds=0.5 if exits == "not" else 60.0)
    status = until(agent, given.attempt, lambda status: status.ended)
    again = run(agent, replace(given, start=2))

    assert {record.kind for record in status.exits} == {Exit.STOPPED}
    assert finished(again.exits, 2)
    assert log_file(given.folder, given.number, 1).read_text().endswith("\nwent on from 3\n")


def test_a_script_at_its_time_limit_is_stopped_and_has_failed_whatever_its_exit_code(
    agent: HostAgent, tmp_path: Path
) -> None:
    given = order(tmp_path, "stop", "0", seconds_left=1.0)
    given = replace(given, spec={**given.spec, "time_limit": {"run": 1.0}})

    record = cause(run(agent, given).exits)

    assert record is not None
    assert record.kind is Exit.TIMED_OUT
    assert "was stopped: it has run for 1s, its time limit" in record.headline
    assert is_final(record, None) == ""


def test_ranks_on_several_hosts_wait_for_one_another_and_know_their_host(
    agent: HostAgent, tmp_path: Path
) -> None:
    """One agent stands for both hosts."""
    meeting = agent.rendezvous("host0-1", 1, "127.0.0.1")
    hosts = [
        replace(order(tmp_path, "look"), attempt=f"host{host}-1", rendezvous=meeting, hosts=2, ranks=ranks)
        for host, ranks in enumerate(
            (RankAssignment(rank=rank, local_rank=0, node_rank=rank),) for rank in (0, 1)
        )
    ]
    agent.launch(hosts[0])
    with pytest.raises(TimeoutError):
        until(agent, "host0-1", lambda status: status.joined, seconds=1.0)

    second = run(agent, hosts[1])
    first = until(agent, "host0-1", lambda status: status.ended)

    assert finished([*first.exits, *second.exits], 2)
    for rank in (0, 1):
        seen = json.loads((saved(hosts[0]) / f"exit-{rank}.json").read_text())
        assert seen["running_mean"] == pytest.approx(0.05)
        expected = {"LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1, "GROUP_RANK": rank, "GROUP_WORLD_SIZE": 2}
        assert {name: int(seen["environment"][name]) for name in expected} == expected
