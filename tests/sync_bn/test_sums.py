"""Sums over ranks in shared memory: what they give, who agrees to them, and what is left of them."""

import gc
import logging
import os
import resource
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from sync_bn import DesynchronizedError, SyncBatchNorm, _handshake, _shared_memory, _sums
from sync_bn._sums import FOLDER_VARIABLE, Member, hosts_of
from testing.ranks import Ranks
from tests.sync_bn.conftest import RanksOf
from tests.sync_bn.prepared import CPU, new_group

pytestmark = pytest.mark.skipif(not _shared_memory.is_available(), reason="no Linux, or no C++ compiler")


def numbers_of(rank: int, size: int, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(100 * size + rank)
    if dtype == torch.int64:
        return torch.randint(-(2**60), 2**60, (size,), generator=generator)
    return torch.randn(size, generator=generator, dtype=dtype) * 10.0 ** (6 * rank)


SIZES = [0, 1, 7, 129, 4097, 8192, 8193, 20_000]


def sums_and_all_reduced(
    rank: int, members: Sequence[int], hosts: Sequence[str] | None, delay: float
) -> list[tuple[Tensor, Tensor]]:
    """Of each size and dtype the sum of both kinds; nothing on a rank that is no member."""
    results = []
    with new_group(members, hosts) as group:
        for dtype in (torch.float64, torch.int64) if rank in members else ():
            for size in SIZES:
                time.sleep(delay * torch.rand(()).item())
                ours, torchs = (numbers_of(rank, size, dtype) for _ in range(2))
                assert _sums.add(ours, group, f"{size} numbers")
                dist.all_reduce(torchs, group=group)
                results.append((ours, torchs))
    return results


WHO_IS_WHERE = [
    ([0, 1], None),
    ([0, 1, 2, 3], None),
    ([1, 3], None),
    ([3, 0, 2], None),
    ([0, 1, 2, 3], ["a", "a", "b", "b"]),
    ([0, 1, 2, 3], ["a", "b", "a", "b"]),
    ([0, 1, 2, 3], ["b", "a", "a", "c"]),
    ([1, 2, 3], ["a", "b", "b"]),
]


@pytest.mark.parametrize(("members", "hosts"), WHO_IS_WHERE, ids=str)
def test_sum_is_that_of_all_reduce_with_the_same_bits_on_every_rank_and_in_every_run(
    ranks_of: RanksOf, members: list[int], hosts: list[str] | None
) -> None:
    runs = [ranks_of(4).run(sums_and_all_reduced, members, hosts, delay) for delay in (0, 0.01)]

    first, *others = [run[rank] for run in runs for rank in members]
    for ours, torchs in first:
        torch.testing.assert_close(ours, torchs, rtol=1e-14, atol=1e-8)
    for other in others:
        for (expected, _), (actual, _) in zip(first, other, strict=True):
            assert torch.equal(actual, expected)
    assert len(first) == 2 * len(SIZES)


def test_numbers_are_added_in_the_order_of_the_ranks_and_then_of_the_hosts(ranks_of: RanksOf) -> None:
    size, (a, b, c, d) = 129, (numbers_of(rank, 129, torch.float64) for rank in range(4))
    here, there = (
        ranks_of(4).run(sums_and_all_reduced, [0, 1, 2, 3], hosts, 0.0)[0][SIZES.index(size)][0]
        for hosts in (None, ["a", "b", "b", "a"])
    )

    assert torch.equal(here, ((a + b) + c) + d)
    assert torch.equal(there, (a + d) + (b + c))


def collectives_counted(_rank: int, hosts: list[str]) -> int:
    with new_group([0, 1, 2, 3], hosts) as group:
        counting: Any = group
        before = counting._get_sequence_number_for_group()
        for _ in range(3):
            _sums.add(torch.ones(3, dtype=torch.float64), group, "a")
        return int(counting._get_sequence_number_for_group() - before + _sums.uncounted(group))


def test_messages_between_hosts_do_not_count_as_collectives(ranks_of: RanksOf) -> None:
    assert ranks_of(4).run(collectives_counted, ["a", "b", "b", "c"]) == [3] * 4


def training(rank: int, options: dict[str, Any]) -> tuple[list[Tensor], int]:
    """Five steps of a layer in a new group: results, and the number of sums in shared memory."""
    torch.manual_seed(rank)
    with patch.dict(os.environ, options):
        group = dist.new_group(range(dist.get_world_size()))
        layer, results = SyncBatchNorm(17, process_group=group), []
        for _ in range(5):
            x = torch.randn(3 + rank, 17, 4, 4).requires_grad_()
            layer(x).square().mul(x.detach()).sum().backward()
            assert x.grad is not None
            results += [x.grad, layer.running_var.clone()]  # type: ignore[union-attr]
        assert group is not None
        entered = _sums.uncounted(group)
        dist.destroy_process_group(group)
        return results, entered


def test_layer_adds_in_shared_memory_after_the_checked_steps_and_computes_the_same(ranks_of: RanksOf) -> None:
    ours = ranks_of(2).run(training, {})
    through_group = ranks_of(2).run(training, {FOLDER_VARIABLE: "0"})

    assert [count for _, count in ours] == [6, 6]
    assert [count for _, count in through_group] == [0, 0]
    torch.testing.assert_close([steps for steps, _ in ours], [steps for steps, _ in through_group])


def without_memory(rank: int, folders: list[str], limit: int | None) -> tuple[float, bool, list[str]]:
    """A sum by the layer's way, whether it was in shared memory, and the warnings."""
    records: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: records.append(record.getMessage())  # type: ignore[method-assign]
    _sums.logger.addHandler(handler)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with patch.dict(os.environ, {FOLDER_VARIABLE: folders[rank]}):
            if limit is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
            with new_group([0, 1]) as group:
                layer = SyncBatchNorm(1, momentum=1.0, process_group=group)
                for _ in range(3):
                    layer(torch.full((2, 1), float(rank)))
                in_memory = _sums.uncounted(group) > 0
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        _sums.logger.removeHandler(handler)
    assert layer.running_mean is not None
    return layer.running_mean.item(), in_memory, records


@pytest.mark.parametrize(
    ("folders", "limit", "problem"),
    [
        (["a", "b"], None, "rank 1 has no memory: [Errno 2]"),
        (["missing", "missing"], None, "rank 0 has no memory: [Errno 2]"),
        (["a", "a"], 200_000, "rank 0 has no memory: [Errno 27]"),
        (["a", "0"], None, None),
    ],
)
def test_ranks_without_common_memory_add_through_the_group_and_say_so_once(
    tmp_path: Path, folders: list[str], limit: int | None, problem: str | None
) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
    paths = [name if name == "0" else str(tmp_path / name) for name in folders]

    # New ranks, whose store is a small file: the limit is for each file that they write.
    with Ranks(2) as ranks:
        (mean, in_memory, records), other = ranks.run(without_memory, paths, limit)

    assert (mean, in_memory) == other[:2] == (0.5, False)
    assert other[2] == []
    assert len(records) == (problem is not None)
    assert all(str(problem) in record for record in records)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def resources(folder: str) -> tuple[int, ...]:
    """Mappings, files and descriptors of this process."""
    maps = Path("/proc/self/maps").read_text().count("sync_bn-")
    return maps, *(len(list(Path(path).iterdir())) for path in (folder, "/proc/self/fd"))


def resources_after_groups(_rank: int, folder: str, *numbers: int) -> list[tuple[int, ...]]:
    found = [resources(folder)]
    with patch.dict(os.environ, {FOLDER_VARIABLE: folder}):
        for number in numbers:
            for _ in range(number):
                with new_group([0, 1]) as group:
                    ones = torch.ones(5, dtype=torch.float64)
                    assert _sums.add(ones, group, "a")
                    assert ones.tolist() == [2.0] * 5
                    assert resources(folder)[:2] == (found[0][0] + 1, 0)
                del group
            gc.collect()
            found.append(resources(folder))
    return found


def test_a_hundred_groups_leave_no_memory_descriptor_or_file(ranks_of: RanksOf, tmp_path: Path) -> None:
    for before, after_three, after_all in ranks_of(2).run(resources_after_groups, str(tmp_path), 3, 97):
        assert after_three == after_all
        assert after_all[:2] == before[:2]


def in_a_child(rank: int) -> tuple[bool, float]:
    """Whether a forked process gave up what it inherited, and a sum of its parent after that."""
    with new_group([0, 1]) as group:
        pid = os.fork()
        if pid == 0:
            maps = Path("/proc/self/maps").read_text()
            added = _sums.add(torch.ones(1, dtype=torch.float64), group, "a")
            os._exit("sync_bn-" in maps or added)
        _, status = os.waitpid(pid, 0)
        numbers = torch.full((1,), float(rank), dtype=torch.float64)
        assert _sums.add(numbers, group, "a")
    return status == 0, numbers.item()


def test_forked_process_is_no_rank_and_takes_nothing_from_its_parent(ranks_of: RanksOf) -> None:
    assert ranks_of(2).run(in_a_child) == [(True, 1.0)] * 2


HERE, THERE = Member("a", "1", None), Member("b", "1", None)


@pytest.mark.parametrize(
    ("members", "hosts"),
    [
        ([HERE, Member("a", "2", None)], [[0, 1]]),
        ([HERE, THERE, Member("a", "2", None)], [[0, 2], [1]]),
        ([HERE, THERE], None),
        ([HERE], None),
        ([HERE, Member("a", "2", "has no compiler")], None),
        ([HERE, HERE], None),
    ],
)
def test_ranks_share_memory_if_all_can_and_some_are_on_one_host(
    members: list[Member], hosts: list[list[int]] | None
) -> None:
    assert hosts_of(members) == hosts


def test_ranks_with_a_reason_not_to_do_not_share_memory() -> None:
    assert _sums._refusal(CPU) is None
    assert _sums._refusal(torch.device("cuda")) is not None
    with patch.dict(os.environ, {FOLDER_VARIABLE: "0"}):
        assert _sums._refusal(CPU) is not None
    with patch.object(_shared_memory, "_LIBRARY", None):
        assert _sums._refusal(CPU) is not None
    level = dist.get_debug_level()  # type: ignore[attr-defined]
    try:
        dist.set_debug_level(dist.DebugLevel.DETAIL)  # type: ignore[attr-defined]
        assert _sums._refusal(CPU) is not None
    finally:
        dist.set_debug_level(level)  # type: ignore[attr-defined]


def agreement_without_rank_1(rank: int) -> str:
    group = dist.new_group([0, 1])
    with patch.object(_handshake.policy, "timeout_seconds", 0.5):
        if rank == 0:
            with pytest.raises(DesynchronizedError) as caught:
                _sums.prepare(group, CPU)
            return str(caught.value)
    return ""


def test_rank_that_does_not_answer_is_waited_for_as_in_a_handshake(ranks_of: RanksOf) -> None:
    assert "did not agree within 0.5 s" in ranks_of(2).run(agreement_without_rank_1)[0]
