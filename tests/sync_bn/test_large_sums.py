"""Many numbers are averaged in shared memory, in the order of the ranks, to the same bits on all of them."""

from __future__ import annotations

import os
import resource
import signal
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from sync_bn import DesynchronizedError, _large_sums, _sums
from sync_bn._large_sums import LargeSums
from sync_bn._sums import FOLDER_VARIABLE
from testing.ranks import RankError, Ranks
from tests.sync_bn.conftest import RanksOf
from tests.sync_bn.prepared import new_group


def values_of(rank: int, numbers: int, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(rank)
    values = torch.randn(numbers, generator=generator, dtype=torch.complex64) * 10.0**rank
    return values.to(dtype) if dtype.is_complex else values.real.to(dtype)


def averages(rank: int, folder: str, ranks: int, numbers: list[int], dtype: torch.dtype) -> list[Tensor]:
    with patch.dict(os.environ, {FOLDER_VARIABLE: folder}), new_group(range(ranks)) as group:
        large = LargeSums.agreed(group)
        assert large is not None
        results = [values_of(rank, each, dtype) for each in numbers]
        large.average(results[:-1], "gradients")
        large.average(results[-1:], "gradients")
        assert list(Path(folder).iterdir()) == []
    return results


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64])
@pytest.mark.parametrize("ranks", [2, 3])
def test_values_are_averaged_in_the_order_of_the_ranks(
    ranks_of: RanksOf, tmp_path: Path, ranks: int, dtype: torch.dtype
) -> None:
    piece = _large_sums._PIECE_BYTES // dtype.itemsize
    numbers = [5, 0, 1, piece - 6, 7, 2 * piece + 3, 0, piece]  # a piece ends between two tensors, and in one

    of_ranks = ranks_of(ranks).run(averages, str(tmp_path), ranks, numbers, dtype)

    for index, each in enumerate(numbers):
        expected = values_of(0, each, dtype) / ranks
        for rank in range(1, ranks):
            expected += values_of(rank, each, dtype) / ranks
        for results in of_ranks:
            assert torch.equal(results[index], expected)


def differs(rank: int, folder: str) -> str:
    with patch.dict(os.environ, {FOLDER_VARIABLE: folder}), new_group([0, 1]) as group:
        large = LargeSums.agreed(group)
        assert large is not None
        with pytest.raises(DesynchronizedError) as error:
            large.average([torch.ones(3 + rank)], "gradients")
        return str(error.value)


def test_ranks_with_other_numbers_of_values_raise(ranks_of: RanksOf, tmp_path: Path) -> None:
    for message in ranks_of(2).run(differs, str(tmp_path)):
        assert "gradients, 3 of float32" in message
        assert "gradients, 4 of float32" in message


def without_room(_rank: int, folders: list[str], limit: int | None) -> bool:
    """Whether the ranks have no memory for many numbers, while they have it for few."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with patch.dict(os.environ, {FOLDER_VARIABLE: folders[0]}), new_group([0, 1]) as group:
        assert _sums.is_on_one_host(group)
        try:
            if limit is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
            os.environ[FOLDER_VARIABLE] = folders[-1]
            return LargeSums.agreed(group) is None
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("limit", [2**20, None])
def test_ranks_without_room_agree_and_leave_no_file(tmp_path: Path, limit: int | None) -> None:
    (tmp_path / "a").mkdir()
    folders = [str(tmp_path / "a"), str(tmp_path / "a")]
    if limit is None:
        folders.append(str(tmp_path / "missing"))

    # New ranks, whose store is a small file: the limit is for each file that they write.
    with Ranks(2) as ranks:
        assert ranks.run(without_room, folders, limit) == [True, True]
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def alone(rank: int) -> bool:  # noqa: ARG001
    with patch.dict(os.environ, {FOLDER_VARIABLE: "0"}), new_group([0, 1]) as group:
        return LargeSums.agreed(group) is None


def test_ranks_that_are_to_share_no_memory_have_none(ranks_of: RanksOf) -> None:
    assert ranks_of(2).run(alone) == [True, True]


def killed(rank: int, folder: str) -> None:
    with patch.dict(os.environ, {FOLDER_VARIABLE: folder}), new_group([0, 1]) as group:
        large = LargeSums.agreed(group)
        assert large is not None
        if rank:
            os.kill(os.getpid(), signal.SIGKILL)
        large.average([torch.ones(4)], "gradients")


def test_a_rank_that_is_killed_ends_the_sum_of_the_others(tmp_path: Path) -> None:
    with Ranks(2) as ranks, pytest.raises(RankError, match=r"exit code -9|Rank 1 has ended"):
        ranks.run(killed, str(tmp_path))
    assert list(tmp_path.iterdir()) == []
