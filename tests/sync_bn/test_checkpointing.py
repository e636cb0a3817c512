"""Activation checkpointing: what is computed again updates nothing again."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from sync_bn import SyncBatchNorm, convert_sync_batchnorm
from tests.sync_bn.conftest import RanksOf

KINDS = pytest.mark.parametrize("use_reentrant", [True, False])
# What is within a part that is checkpointed the reentrant way runs without gradients the first time.
pytestmark = pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")

Trained = dict[str, Tensor]


class Network(nn.Module):
    """Two blocks; unless use_reentrant is None each is checkpointed, and a part of the second once more."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        blocks = [nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4, **options), nn.Tanh()) for _ in range(2)]
        self.first, self.second = (block.double() for block in blocks)
        self.last = nn.Linear(4, 1).double()

    def forward(self, x: Tensor, use_reentrant: bool | None = None) -> Tensor:
        if use_reentrant is None:
            y = self.second(self.first(x))
        else:
            y = checkpoint(self.first, x, use_reentrant=use_reentrant)
            y = checkpoint(self._nested, y, use_reentrant, use_reentrant=use_reentrant)
        z: Tensor = self.last(y)
        return z

    def _nested(self, y: Tensor, use_reentrant: bool) -> Tensor:
        z: Tensor = checkpoint(self.second[1:], self.second[0](y), use_reentrant=use_reentrant)
        return z


def train(model: nn.Module, x: Tensor, use_reentrant: bool | None, loss_weight: float = 1.0) -> Trained:
    """Two steps: all that the model has learnt, and the gradients of the second one and of its input."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        x = x.detach().requires_grad_()
        torch.autograd.backward(model(x, use_reentrant).square().mean() * loss_weight)
        optimizer.step()
    model = model.module if isinstance(model, DistributedDataParallel) else model
    gradients = {f"gradient of {name}": p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert x.grad is not None
    return model.state_dict() | gradients | {"gradient of x": x.grad / loss_weight}


def train_on_ranks(rank: int, model: nn.Module, parts: list[Tensor], use_reentrant: bool) -> Trained:
    share = len(parts[rank]) / sum(map(len, parts))
    # DDP has to be told that it does not see what is checkpointed the reentrant way.
    ddp = DistributedDataParallel(convert_sync_batchnorm(model), static_graph=use_reentrant)
    return train(ddp, parts[rank], use_reentrant, share * len(parts))


@KINDS
@pytest.mark.parametrize("momentum", [0.1, None])
def test_in_ddp_over_ranks_it_trains_as_one_process_without_checkpoints(
    ranks_of: RanksOf, momentum: float | None, use_reentrant: bool
) -> None:
    torch.manual_seed(1)
    x = torch.randn(6, 4).double()
    model = Network(momentum=momentum)

    by_rank = ranks_of(2).run(train_on_ranks, model, list(torch.split(x, [4, 2])), use_reentrant)

    expected = train(Network(momentum=momentum), x, None)
    shares = torch.cat([trained.pop("gradient of x") * n for trained, n in zip(by_rank, (4, 2), strict=True)])
    torch.testing.assert_close(shares, expected.pop("gradient of x") * 6, rtol=1e-9, atol=1e-12)
    for trained in by_rank:
        assert trained["first.1.num_batches_tracked"] == trained["second.1.num_batches_tracked"] == 2
        torch.testing.assert_close(trained, expected, rtol=1e-9, atol=1e-12)


@KINDS
@pytest.mark.parametrize("activation", [None, "relu"])
def test_alone_too_statistics_are_updated_once_a_step(activation: str | None, use_reentrant: bool) -> None:
    x = torch.randn(6, 4).double()
    models = [convert_sync_batchnorm(Network()) for _ in range(2)]
    for model in models:
        for layer in model.modules():
            if activation is not None and isinstance(layer, SyncBatchNorm):
                layer.activation = activation

    checkpointed, expected = (
        train(m, x, kind) for m, kind in zip(models, (use_reentrant, None), strict=True)
    )

    assert checkpointed["first.1.num_batches_tracked"] == 2
    torch.testing.assert_close(checkpointed, expected, rtol=1e-12, atol=1e-12)


@KINDS
def test_layer_without_running_statistics_is_computed_again(use_reentrant: bool) -> None:
    x = torch.randn(6, 4).double()
    checkpointed, expected = (
        train(convert_sync_batchnorm(Network(track_running_stats=False)), x, kind)
        for kind in (use_reentrant, None)
    )
    torch.testing.assert_close(checkpointed, expected, rtol=1e-12, atol=1e-12)
