"""The helper that runs the other tests in several processes."""

import os
import time

import pytest
import torch
import torch.distributed as dist

from testing.ranks import RankError, Ranks


def sum_of_ranks(rank: int, offset: float) -> tuple[int, float, int]:
    total = torch.tensor(offset + rank)
    dist.all_reduce(total)
    return rank, total.item(), os.getpid()


def fail_on_rank_1(rank: int) -> None:
    if rank == 1:
        raise KeyError("the cause")
    dist.barrier()


def die_on_rank_1(rank: int) -> None:
    if rank == 1:
        os._exit(7)
    time.sleep(60)


def sleep(rank: int) -> None:
    time.sleep(60 + rank)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_ranks_answer_in_order_stay_between_calls_and_are_gone_after_the_block() -> None:
    with Ranks(1) as ranks:
        ((rank, total, pid),) = ranks.run(sum_of_ranks, 1.0)
        assert ranks.run(sum_of_ranks, 2.0) == [(0, 2.0, pid)]
    assert (rank, total) == (0, 1.0)
    assert not alive(pid)


def test_first_failing_rank_is_raised_with_its_traceback_and_the_next_run_starts_afresh() -> None:
    with Ranks(2) as ranks:
        with pytest.raises(RankError, match=r"rank 1 of 2 failed[\s\S]*in fail_on_rank_1[\s\S]*the cause"):
            ranks.run(fail_on_rank_1)
        assert [result[:2] for result in ranks.run(sum_of_ranks, 0.0)] == [(0, 1.0), (1, 1.0)]
        with pytest.raises(RankError, match="rank 1 died with exit code 7"):
            ranks.run(die_on_rank_1)


def test_ranks_that_do_not_answer_are_killed() -> None:
    with Ranks(1, timeout_seconds=20) as ranks:
        ((_, _, pid),) = ranks.run(sum_of_ranks, 0.0)
        ranks.timeout_seconds = 0.2
        with pytest.raises(RankError, match=r"ranks \[0\] did not answer within 0.2 s"):
            ranks.run(sleep)
        assert not alive(pid)
