"""Other synchronized batch normalisation schemes that run on a CPU: fairscale's, and three reimplemented.

All compute in the input's dtype and expect the same number of samples on every rank. x is (N, C, H, W).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

AllReduce = Callable[..., tuple[Tensor, ...]]

_DIMS = (0, 2, 3)


class AutogradSyncBatchNorm(nn.BatchNorm2d):
    """Plain autograd around one differentiable all-reduce of means and means of squares.

    The simplest implementation; detectron2's NaiveSyncBatchNorm works like this.
    """

    def forward(self, input: Tensor) -> Tensor:
        local = torch.cat([input.mean(_DIMS), input.square().mean(_DIMS)])
        total: Tensor = _DifferentiableAllReduce.apply(local)  # type: ignore[no-untyped-call]
        mean, mean_of_squares = (total / dist.get_world_size()).chunk(2)
        var = mean_of_squares - mean.square()
        _update_running_statistics(self, mean, var, _values_per_channel(input) * dist.get_world_size())
        scale = self.weight * (var + self.eps).rsqrt()
        return input * _per_channel(scale) + _per_channel(self.bias - mean * scale)


class PackedSyncBatchNorm(nn.BatchNorm2d):
    """One all-reduce of sums, sums of squares and the count in forward, and one of two sums in backward."""

    def forward(self, input: Tensor) -> Tensor:
        return _synchronized(self, input, all_reduce_together)


class UnpackedSyncBatchNorm(nn.BatchNorm2d):
    """Like the one above, with a separate all-reduce for each of the two sums, forward and backward."""

    def forward(self, input: Tensor) -> Tensor:
        return _synchronized(self, input, all_reduce_one_by_one)


def all_reduce_together(*parts: Tensor) -> tuple[Tensor, ...]:
    packed = torch.cat(parts)
    dist.all_reduce(packed)
    return torch.split(packed, [len(part) for part in parts])


def all_reduce_one_by_one(*parts: Tensor) -> tuple[Tensor, ...]:
    for part in parts:
        dist.all_reduce(part)
    return parts


def fairscale_sync_batch_norm(num_features: int) -> nn.Module:
    """fairscale's layer. Needs fairscale."""
    with warnings.catch_warnings():  # about torch names that other parts of fairscale use
        warnings.simplefilter("ignore")
        layer: nn.Module = import_module("fairscale.experimental.nn").SyncBatchNorm(num_features)
    return layer


class _DifferentiableAllReduce(torch.autograd.Function):
    """A sum over ranks, whose gradient is the sum of the ranks' gradients (as torch.distributed.nn's)."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:  # noqa: ARG004
        return all_reduce_together(values)[0]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # noqa: ARG004
        return all_reduce_together(gradient)[0]


class _Normalise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, all_reduce: AllReduce
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        count = x.new_full((1,), _values_per_channel(x))
        sums, squares = all_reduce(torch.cat([x.sum(_DIMS), count]), x.square().sum(_DIMS))
        n, mean = sums[-1], sums[:-1] / sums[-1]
        var = squares / n - mean.square()
        invstd = (var + eps).rsqrt()
        ctx.save_for_backward(x, weight, mean, invstd, n)
        ctx.all_reduce = all_reduce
        ctx.mark_non_differentiable(mean, var, n)
        scale = weight * invstd
        y = torch.addcmul(_per_channel(bias - mean * scale), x, _per_channel(scale))
        return y, mean, var, n

    @staticmethod
    def backward(ctx: Any, dy: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, invstd, n = ctx.saved_tensors
        dy_sum = dy.sum(_DIMS)
        dy_xhat = ((dy * x).sum(_DIMS) - mean * dy_sum) * invstd
        total_dy, total_dy_xhat = ctx.all_reduce(dy_sum.clone(), dy_xhat.clone())
        a = weight * invstd
        b = -a * invstd * total_dy_xhat / n
        c = -a * total_dy / n - b * mean
        dx = torch.addcmul(_per_channel(c), x, _per_channel(b)).addcmul_(dy, _per_channel(a))
        return dx, dy_xhat, dy_sum, None, None


def _synchronized(layer: nn.BatchNorm2d, x: Tensor, all_reduce: AllReduce) -> Tensor:
    y, mean, var, n = _Normalise.apply(x, layer.weight, layer.bias, layer.eps, all_reduce)  # type: ignore[no-untyped-call]
    _update_running_statistics(layer, mean, var, n)
    return y  # type: ignore[no-any-return]


@torch.no_grad()
def _update_running_statistics(layer: nn.BatchNorm2d, mean: Tensor, var: Tensor, n: Tensor | int) -> None:
    assert layer.running_mean is not None
    assert layer.running_var is not None
    assert layer.num_batches_tracked is not None
    assert layer.momentum is not None
    layer.num_batches_tracked.add_(1)
    layer.running_mean.lerp_(mean, layer.momentum)
    layer.running_var.lerp_(var * n / (n - 1), layer.momentum)


def _values_per_channel(x: Tensor) -> int:
    return x.numel() // x.shape[1]


def _per_channel(values: Tensor) -> Tensor:
    return values.view(1, -1, 1, 1)
