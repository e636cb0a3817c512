"""Losses of the global batch that are not means over samples: masked means, ratios, sums over counts."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from sync_bn import _handshake, _sums

_KEY = "global_mean"


class Summing(Protocol):
    """Sums numbers over the ranks, and knows how much this rank counts when gradients are averaged."""

    def __call__(self, numbers: Tensor) -> tuple[Tensor, float]:
        """Returns the sums over all ranks, and the weight of this rank in the mean over the ranks.

        numbers: (n,) float64, the same n on every rank. Collective.
        """


_summing: Summing | None = None


def global_mean(total: Tensor, weight: Tensor | float) -> Tensor:
    """Returns Σ total / Σ weight over all ranks, with the gradient of the global batch.

    For losses that are not means over samples, where a rank cannot divide by what it holds alone::

        loss = global_mean((loss_map * mask).sum(), mask.sum())

    With T_r and W_r of rank r, T = Σ_r T_r and W = Σ_r W_r, every rank gets the value T / W. Its gradient on
    rank r is

        (∇T_r - T/W ∇W_r) / (W s_r) ,

    where s_r is the weight of the rank when gradients are averaged: 1 over the number of ranks, as
    DistributedDataParallel averages. So the averaged gradient Σ_r s_r (...) is that of T / W. Jobs of this
    project weight ranks by their samples and set s_r accordingly. Any function of such values has the right
    gradient, too: `1 - 2 * global_mean(overlap, size)`, a sum with other losses.

    total: a floating-point tensor of any shape, such as one value per class. weight: a number, or a tensor of
    any dtype that broadcasts with `total`; it may have a gradient. The result has their common shape and
    dtype; sums are float64. A rank without elements gives zeros. If Σ weight is 0, the result is not
    finite.

    Without an initialised torch.distributed, or with one rank, it is `total / weight`. Otherwise it blocks in
    one all-reduce of two numbers per element, in the default group: every rank must call it equally often, in
    the same order, with the same shape. In its first calls the ranks check that (see `check_ranks`).

    Raises ValueError if `total` is not floating-point, DesynchronizedError if ranks call it differently, and
    RuntimeError for second derivatives through `weight`.
    """
    if not total.is_floating_point():
        raise ValueError(f"total has dtype {total.dtype}; expected a floating-point tensor")
    if _summing is None and not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return total / weight
    weights = torch.as_tensor(weight, device=total.device)
    dtype = torch.result_type(total, weights)
    weights = weights.double()
    totals = total.double() + torch.zeros_like(weights)
    weights = weights.expand_as(totals)
    # The ranks' totals and weights. Every rank reaches it: one without elements has zeros to add.
    numbers = torch.cat([totals.detach().reshape(-1), weights.detach().reshape(-1)])
    sums, share = (_summing or _sum)(numbers)
    all_totals, all_weights = (part.view_as(totals) for part in sums.chunk(2))
    mean = all_totals / all_weights
    change = totals - totals.detach()
    if weights.requires_grad:
        weights = _first_derivative(weights)
        change = change - mean * (weights - weights.detach())
    factor = 1 / (all_weights * share) if share else torch.zeros_like(mean)
    return (mean + change * factor).to(dtype)


@contextmanager
def summed_by(summing: Summing) -> Iterator[None]:
    """Lets `global_mean` communicate by `summing`, for programs that do not weight all ranks equally."""
    global _summing
    before, _summing = _summing, summing
    try:
        yield
    finally:
        _summing = before


def _sum(numbers: Tensor) -> tuple[Tensor, float]:
    what, share = f"global_mean of {len(numbers) // 2} elements", 1 / dist.get_world_size()
    if not _handshake.is_checked(_KEY):
        _handshake.handshake(None, what, "forward")
        _handshake.count_step(_KEY)
        _sums.prepare(None, numbers.device)
    elif _handshake.policy.steps > 0 and _sums.add(numbers, None, what):
        return numbers, share
    dist.all_reduce(numbers)
    return numbers, share


def _first_derivative(values: Tensor) -> Tensor:
    result: Tensor = _FirstDerivative.apply(values)  # type: ignore[no-untyped-call]
    return result


class _FirstDerivative(torch.autograd.Function):
    """The identity, without second derivatives: those of a ratio are not sums over ranks."""

    @staticmethod
    def forward(_ctx: Any, values: Tensor) -> Tensor:
        return values.view_as(values)

    @staticmethod
    def backward(_ctx: Any, gradient: Tensor) -> Tensor:
        if torch.is_grad_enabled():  # with create_graph=True
            raise RuntimeError("global_mean has no second derivatives through its weight")
        return gradient
