"""What is timed as ours is the layer at its work among ranks."""

from __future__ import annotations

import torch

from benchmarks.sync_bn.communication import CountCalls
from benchmarks.sync_bn.fused import FUSED, SEPARATE, contestants
from benchmarks.sync_bn.ours import DistributedSyncBatchNorm
from benchmarks.sync_bn.pools import RanksOf


def calls_of_a_step(_rank: int) -> list[str]:
    x = torch.randn(2, 3, 4, 4, requires_grad=True)
    with CountCalls() as count:
        torch.autograd.grad(DistributedSyncBatchNorm(3)(x).sum(), x)
    return list(count.calls().names)


def test_one_rank_alone_takes_the_way_of_many(ranks_of: RanksOf) -> None:
    assert ranks_of(1).run(calls_of_a_step) == [["allreduce", "allreduce"]]


def test_only_the_fused_contestant_has_the_activation_in_the_layer() -> None:
    layers = contestants(3)

    assert getattr(layers[FUSED], "activation", None) == "relu"
    assert [type(part).__name__ for part in layers[SEPARATE].children()] == [
        "DistributedSyncBatchNorm",
        "ReLU",
    ]
    assert layers[SEPARATE].get_submodule("0").activation is None
