"""The autograd function: where the ranks meet. One collective forward, one backward."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from sync_bn._arithmetic import (
    Moments,
    global_moments,
    input_gradient,
    local_gradient_sums,
    local_sums,
    normalise,
)


def batch_norm_over_ranks(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, group: dist.ProcessGroup | None
) -> tuple[Tensor, Moments]:
    """x normalised over the samples of all ranks of the group, and the moments that it was normalised by.

    x: (N, C, ...), any floating dtype, N may be 0; weight, bias: (C,) or None. The result is like x; the
    moments are not differentiable. Every rank of the group calls it, and calls backward of its result; both
    block until all have. Gradients of weight and bias are this rank's sums: whoever averages or adds up
    parameter gradients over ranks does the same with these.
    """
    y, *moments = _BatchNormOverRanks.apply(x, weight, bias, eps, group)  # type: ignore[no-untyped-call]
    return y, Moments(*moments)


class _BatchNormOverRanks(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
        group: dist.ProcessGroup | None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        sums = local_sums(x)
        # Nobody can normalise before the moments of the whole batch are known. Every rank gets here, an
        # empty one with zeros, and always with 2C+1 float64 numbers, whatever the dtype of its input.
        dist.all_reduce(sums, group=group)
        moments = global_moments(sums)
        invstd = (moments.var + eps).rsqrt()
        y = normalise(x, moments.mean, invstd, weight, bias)
        ctx.save_for_backward(x, weight, invstd, *moments)
        ctx.group = group
        ctx.mark_non_differentiable(*moments)
        return y, *moments

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, invstd, *rest = ctx.saved_tensors
        moments = Moments(*rest)
        local = local_gradient_sums(dy, x, moments.mean, invstd)
        # Each sample moved the mean and the variance of all, so its gradient needs everyone's dy. Every rank
        # gets here, an empty one with zeros, and one whose own input needs no gradient too: its peers' may.
        total = local.clone()
        dist.all_reduce(total, group=ctx.group)
        dx_needed, weight_needed, bias_needed, *_unused = ctx.needs_input_grad
        dx = input_gradient(dy, x, moments, invstd, weight, total) if dx_needed else None
        grad_bias, grad_weight = local.chunk(2)
        return (
            dx,
            grad_weight.to(weight.dtype) if weight_needed else None,
            grad_bias.to(weight.dtype) if bias_needed else None,
            None,
            None,
        )
