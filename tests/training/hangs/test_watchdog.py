"""Real gloo processes that hang in every way, and some that do not hang."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from tests.training.hanging import BAD_STEP, HANG_SECONDS, running
from training.hangs.diagnosis import Hang, hang_report
from training.protocol import HANG_EXIT_CODE as EXIT_CODE

pytestmark = pytest.mark.usefixtures("full_run")

ENDED_WITH_IT = {EXIT_CODE, 1}
"""Exit codes of a rank that ends itself, or that gloo first tells that the others have ended."""


def found(folder: Path) -> tuple[Hang, str]:
    """Returns the hang and the first line of its message."""
    hang = hang_report(folder)
    assert hang is not None
    return hang, hang.message.splitlines()[0]


def test_a_rank_that_sleeps_for_ever_is_found_with_its_line_and_the_stacks_of_all(tmp_path: Path) -> None:
    with running("sleeps", tmp_path, world_size=3) as run:
        *others, asleep = run.exit_codes()
        run.wait_until_nothing_is_left()

    assert asleep == EXIT_CODE
    assert ENDED_WITH_IT.issuperset(others)
    hang, sentence = found(run.hang_folder)
    assert (hang.rank, hang.step) == (2, BAD_STEP)
    assert sentence.startswith(
        "rank 2 made no progress for 2 s at step 3 (train batch 3): stuck at hanging.py:"
    )
    assert (
        "in sleep_for_ever (time.sleep(1e6)); ranks 0, 1 waited for it at step 3 (train batch 3)" in sentence
    )
    assert sentence.endswith("in average (dist.all_reduce(x))")
    for rank, process in enumerate(run.processes):
        assert f"rank {rank} is process {process.pid} on {os.uname().nodename}\n" in hang.message
    assert "\nranks 0, 1 at step 3 (train batch 3):\n  File" in hang.message
    assert "\nrank 2 at step 3 (train batch 3):\n  File" in hang.message
    assert hang.message.count(", in all_reduce\n") == 1


def test_ranks_in_different_collectives_are_told_apart(tmp_path: Path) -> None:
    with running("skips", tmp_path) as run:
        assert EXIT_CODE in run.exit_codes()

    _, sentence = found(run.hang_folder)
    assert "in other_collective (dist.barrier())" in sentence
    assert "in average (dist.all_reduce(x))" in sentence


def test_a_rank_that_left_while_others_wait_for_it_is_named(tmp_path: Path) -> None:
    with running("leaves", tmp_path) as run:
        assert run.exit_code(0) == EXIT_CODE

    hang, sentence = found(run.hang_folder)
    assert (hang.rank, hang.step) == (1, BAD_STEP)
    assert sentence.startswith(
        "rank 1 had left the training at step 3 (ended); rank 0 waited for it at step 3"
    )


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_rank_that_keeps_pythons_lock_is_found_and_killed(tmp_path: Path, world_size: int) -> None:
    with running("spins", tmp_path, world_size) as run:
        codes = run.exit_codes()
        run.wait_until_nothing_is_left()

    assert codes == [EXIT_CODE, -signal.SIGKILL][-world_size:]
    hang, sentence = found(run.hang_folder)
    assert (hang.rank, hang.step) == (world_size - 1, BAD_STEP)
    assert (
        'in spin (re.match(r"(a+)+$", "a" * 100 + "b")), in C code that holds Python\'s global lock'
        in sentence
    )


def test_a_rank_that_is_stopped_is_found_and_killed(tmp_path: Path) -> None:
    with running("is stopped", tmp_path) as run:
        assert run.exit_codes() == [EXIT_CODE, -signal.SIGKILL]
        run.wait_until_nothing_is_left()

    hang, sentence = found(run.hang_folder)
    assert (hang.rank, hang.step) == (1, BAD_STEP)
    assert sentence.startswith(
        "rank 1 did not answer, last heard of at step 3 (train batch 3): its process is stop"
    )
    assert "rank 0 waited for it at step 3 (train batch 3) at hanging.py:" in sentence


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_under_lightning_the_line_is_found_behind_ddp_and_autograd(tmp_path: Path, where: str) -> None:
    with running(where, tmp_path) as run:
        assert run.exit_codes()[1] == EXIT_CODE

    hang, sentence = found(run.hang_folder)
    assert (hang.rank, hang.step) == (1, BAD_STEP)
    assert sentence.startswith(
        f"rank 1 made no progress for 2 s at step 3 ({where} pass of train batch 2 of epoch 0)"
    )
    assert "in sleep_for_ever (time.sleep(1e6)); rank 0 waited for it at step 3" in sentence


@pytest.mark.parametrize("what", ["nowhere", "is slow"])
def test_a_healthy_run_is_left_alone(tmp_path: Path, what: str) -> None:
    with running(what, tmp_path) as run:
        assert run.exit_codes() == [0, 0]
        run.wait_until_nothing_is_left()

    assert hang_report(run.hang_folder) is None


def test_a_pause_of_all_processes_is_no_hang(tmp_path: Path) -> None:
    with running("is paused", tmp_path) as run:
        run.wait_for("may-be-paused")
        os.killpg(run.group, signal.SIGSTOP)
        time.sleep(HANG_SECONDS + 8)  # longer than any of the deadlines
        os.killpg(run.group, signal.SIGCONT)
        assert run.exit_codes() == [0, 0]

    assert hang_report(run.hang_folder) is None


def test_an_error_of_the_training_is_no_hang(tmp_path: Path) -> None:
    with running("fails", tmp_path, world_size=1) as run:
        assert run.exit_codes() == [1]
        run.wait_until_nothing_is_left()

    assert hang_report(run.hang_folder) is None
