"""Rows and sums over shards do not depend on which rank has which of them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.training.bits.runs import digest
from tests.training.worlds import Worlds
from training.bits.exchange import Exchange, dealt, in_order

SHARDS = 7


@given(shards=st.integers(1, 100), world_size=st.integers(1, 100))
def test_ranks_have_consecutive_shards_as_equally_many_as_possible(shards: int, world_size: int) -> None:
    ranks = [dealt(shards, rank, world_size) for rank in range(world_size)]

    assert [shard for rank in ranks for shard in rank] == list(range(shards))
    assert max(map(len, ranks)) - min(map(len, ranks)) <= 1


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_the_owner_of_a_shard_is_the_rank_that_has_it(world_size: int) -> None:
    exchange = Exchange(SHARDS, 0, world_size)

    for shard in range(SHARDS):
        assert shard in dealt(SHARDS, exchange.owner(shard), world_size)


def _numbers() -> Tensor:
    generator = torch.Generator().manual_seed(1)
    scales = 10.0 ** torch.randint(-8, 8, (SHARDS, 50), generator=generator)
    numbers = scales * torch.randn(SHARDS, 50, generator=generator)
    numbers[:, 0] = -0.0
    numbers[::2, 1] = -0.0
    return numbers


def _exchanged(
    rank: int, world_size: int, dtype: torch.dtype = torch.float32, *, shares_memory: bool = False
) -> tuple[Tensor, Tensor, list[int], list[str]]:
    exchange = Exchange(SHARDS, rank, world_size)
    if shares_memory:
        exchange.share_memory("cpu")
    own = _numbers()[exchange.own.start : exchange.own.stop].to(dtype)
    return (
        exchange.rows(own),
        exchange.sum(own),
        exchange.objects([shard * 10 for shard in exchange.own]),
        exchange.of_ranks(f"rank {rank}"),
    )


def test_any_dealing_gives_the_same_bits_on_every_rank(worlds: Worlds) -> None:
    rows = _numbers()
    assert digest(in_order(rows.unbind())) != digest(
        in_order(rows.flip(0).unbind())
    )  # the order counts in float32

    found = {n: worlds.run(n, _exchanged, n) for n in (1, 2, 3, 4)}

    for world_size, ranks in found.items():
        for own in ranks:
            torch.testing.assert_close(own[0], rows, rtol=0, atol=0)
            assert digest(own[0]) == digest(found[1][0][0])
            assert digest(own[1]) == digest(in_order((rows + 0).unbind()))
            assert own[2] == [10 * shard for shard in range(SHARDS)]
            assert own[3] == [f"rank {rank}" for rank in range(world_size)]
    assert not found[1][0][0].signbit()[:, 0].any()


def test_shared_memory_gives_the_same_bits(worlds: Worlds) -> None:
    rows = _numbers().double()

    for own in worlds.run(3, _exchanged, 3, torch.float64, shares_memory=True):
        assert digest(own[0]) == digest(rows + 0)
        assert digest(own[1]) == digest(in_order((rows + 0).unbind()))
