"""Sums in shared memory whose ranks differ, end, are late, or are interrupted: every rank is told."""

import os
import signal
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist

from sync_bn import DesynchronizedError, _shared_memory, _sums, groups
from sync_bn._shared_memory import Kind
from sync_bn._sums import FOLDER_VARIABLE
from testing.ranks import Ranks
from testing.warm import warm
from tests.sync_bn.prepared import CPU, new_group

pytestmark = pytest.mark.skipif(not _shared_memory.is_available(), reason="no Linux, or no C++ compiler")


@pytest.fixture(scope="module")
def ranks() -> Iterator[Ranks]:
    """Ranks of their own: after an error they stop taking part at different places."""
    with Ranks(3, timeout_seconds=45) as ranks:
        yield ranks


def error_of_those_who_differ(rank: int, hosts: list[str] | None, differs: str) -> list[str]:
    """The messages of two calls, of which the first differs on rank 1."""
    odd = rank == 1
    numbers = torch.ones(6 if odd and differs == "size" else 5, dtype=torch.float64)
    group = dist.new_group()
    assert group is not None
    with patch.object(groups, "host", return_value=(hosts[rank] if hosts else "here",)):
        _sums.prepare(group, CPU)
    messages = []
    for what in ("backward of a" if odd and differs == "what" else "forward of a", "forward of b"):
        with pytest.raises(DesynchronizedError) as caught:
            _sums.add(numbers, group, what)
        messages.append(str(caught.value))
    return messages


@pytest.mark.parametrize("hosts", [None, ["a", "b", "b"], ["a", "b", "a"]])
@pytest.mark.parametrize("differs", ["what", "size"])
def test_ranks_that_enter_different_sums_all_raise_at_once_and_ever_after(
    ranks: Ranks, hosts: list[str] | None, differs: str
) -> None:
    try:
        results = ranks.run(error_of_those_who_differ, hosts, differs)
    finally:
        ranks.close()

    for first, second in results:
        assert first == second
        if differs == "what":
            assert "forward of a" in first
            assert "backward of a" in first


def error_where_rank_0_comes_late(rank: int) -> tuple[str, float, float]:
    """Returns it with the times of the call's begin and end."""
    with new_group([0, 1, 2], seconds=1.0) as group:
        if rank == 0:
            time.sleep(2.5)
        begun = time.monotonic()
        with pytest.raises(dist.DistBackendError) as caught:
            _sums.add(torch.ones(3, dtype=torch.float64), group, "forward of a")
    return str(caught.value), begun, time.monotonic()


def test_rank_that_does_not_come_within_the_groups_timeout_is_named_and_raises_the_same_later(
    ranks: Ranks,
) -> None:
    late, *waiting = ranks.run(error_where_rank_0_comes_late)

    first = min(begun for _, begun, _ in waiting)  # when its time is over, the other one raises, too
    for message, _, ended in waiting:
        assert message == late[0]
        assert message.startswith("Rank 0 did not arrive within 1 s")
        assert "forward of a" in message
        assert ended - first > 1


def error_where_rank_2_leaves(rank: int, hosts: list[str]) -> str:
    with new_group([0, 1, 2], hosts) as group:
        _sums.add(torch.ones(3, dtype=torch.float64), group, "forward of a")
        if rank == 2:
            return ""
        with pytest.raises(RuntimeError) as caught:
            _sums.add(torch.ones(3, dtype=torch.float64), group, "forward of a")
    return str(caught.value)


@pytest.mark.parametrize("hosts", [["a"] * 3, ["b", "a", "a"]])
def test_rank_that_has_left_the_group_is_named(ranks: Ranks, hosts: list[str]) -> None:
    *others, _ = ranks.run(error_where_rank_2_leaves, hosts)
    assert any("Rank 2 has ended, or left the process group" in message for message in others)


def error_where_rank_1_enters_and_ends(rank: int, folder: Path) -> str:
    """Rank 2 lives and does not come: those that have not entered are not those that have ended."""
    numbers, told = torch.ones(3, dtype=torch.float64), folder / "told"
    with new_group([0, 1, 2]) as group:
        if rank == 0:
            with pytest.raises(dist.DistBackendError) as caught:
                _sums.add(numbers, group, "forward of a")
            told.touch()
            return str(caught.value)
        meeting = _sums._meetings[group]
        assert meeting is not None
        if rank == 1 and (memory := meeting._memory) is not None:
            memory.rounds += 1
            memory._meet(False, Kind.DOUBLES, numbers.data_ptr(), 3, b"forward of a")
            memory.close()
        while rank == 2 and not told.exists():
            time.sleep(0.01)
        return ""


def test_rank_that_ends_after_it_has_entered_is_noticed(ranks: Ranks, tmp_path: Path) -> None:
    message, *_ = ranks.run(error_where_rank_1_enters_and_ends, tmp_path)
    assert message.startswith("Rank 1 has ended, or left the process group")


def interrupted(rank: int, folder: Path) -> str:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    def add_with_an_alarm() -> None:
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        _sums.add(torch.ones(3, dtype=torch.float64), group, "forward of a")

    with new_group([0, 1, 2]) as group:
        if rank > 0:
            while not (folder / "interrupted").exists():
                time.sleep(0.01)
            with pytest.raises(dist.DistBackendError) as caught:
                _sums.add(torch.ones(3, dtype=torch.float64), group, "forward of a")
            return str(caught.value)
        signal.signal(signal.SIGALRM, interrupt)
        with pytest.raises(KeyboardInterrupt):
            add_with_an_alarm()
        (folder / "interrupted").touch()
        return ""


def test_rank_that_waits_can_be_interrupted_and_the_others_do_not_wait_for_it(
    ranks: Ranks, tmp_path: Path
) -> None:
    for message in ranks.run(interrupted, tmp_path)[1:]:
        assert message == "Rank 0 has left forward of a: KeyboardInterrupt: "


def lost_rank(rank: int, store: Path, folder: Path) -> None:
    """Rank 1 kills itself; rank 0 writes what it is told."""
    timeout = timedelta(seconds=60)
    dist.init_process_group("gloo", init_method=store.as_uri(), rank=rank, world_size=2, timeout=timeout)
    with patch.dict(os.environ, {FOLDER_VARIABLE: str(folder)}):
        _sums.prepare(None, CPU)
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    with pytest.raises(dist.DistBackendError) as caught:
        _sums.add(torch.ones(3, dtype=torch.float64), None, "forward of a")
    store.with_name("message").write_text(str(caught.value))
    os.kill(os.getpid(), signal.SIGKILL)


def test_killed_rank_is_named_and_killed_processes_leave_no_file(tmp_path: Path) -> None:
    folder = tmp_path / "memory"
    folder.mkdir()
    context = warm("torch.distributed", "sync_bn")
    processes = [
        context.Process(target=lost_rank, args=(rank, tmp_path / "store", folder)) for rank in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()

    message = (tmp_path / "message").read_text()
    assert message.startswith("Rank 1 has ended, or left the process group, while rank 0 waited to enter")
    assert list(folder.iterdir()) == []
