"""Planted faults, each of which would make results depend on the workers, are seen by the hashes.

Also without the dry step, which refuses some of them: see test_dry_step.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch.distributed as dist
from torch import Tensor

from tests.training.attempts import attempt
from tests.training.bits.runs import hashes_of, spec_of
from tests.training.worlds import Worlds
from training.bits import tree
from training.bits.dry_step import DryStep
from training.bits.exchange import Exchange
from training.bits.state import ShardState
from training.loading.generators import seed_globally, seeds_of


def _sum_in_rank_order(_: Exchange, own: Tensor) -> Tensor:
    total = own.sum(0)
    dist.all_reduce(total)
    return total


_enter = ShardState.enter


def enter_with_generator_of_rank(self: ShardState, shard: int) -> None:
    _enter(self, shard)
    seed_globally(seeds_of(bytes([dist.get_rank(), shard])))


def _root_in_rank_order(own: Sequence[Sequence[Tensor]], _: Exchange) -> None:
    for values, *others in zip(*own, strict=True):
        for other in others:
            values += other
        dist.all_reduce(values)


FAULTS: dict[str, tuple[str, list[tuple[Any, str, Any]]]] = {
    "none": ("mlp", []),
    "sums in the order of ranks": ("resnet", [(Exchange, "sum", _sum_in_rank_order)]),
    "a generator seeded by rank": ("mlp", [(ShardState, "enter", enter_with_generator_of_rank)]),
    "gradients added in the order of ranks": ("mlp", [(tree, "root_of_ranks", _root_in_rank_order)]),
    "shares computed whole": ("mlp", []),
}


def faulty(rank: int, fault: str, folder: Path) -> dict[str, str]:
    network, patches = FAULTS[fault]
    shards = dist.get_world_size() if fault == "shares computed whole" else 4
    with ExitStack() as stack:
        stack.enter_context(patch.object(DryStep, "check"))
        for where, name, new in patches:
            stack.enter_context(patch.object(where, name, new))
        return hashes_of(attempt(rank, spec_of(network, shards=shards, precision="64-true"), folder), folder)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_changes_hashes(worlds: Worlds, tmp_path: Path, fault: str) -> None:
    one, two = (worlds.run(n, faulty, fault, tmp_path / str(n))[0] for n in (1, 3))

    assert (one["weights"] == two["weights"]) == (fault == "none")
    assert (one["metrics"] == two["metrics"]) == (fault == "none")
