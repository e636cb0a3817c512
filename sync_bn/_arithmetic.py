"""The arithmetic of batch normalisation over a batch cut into parts: pure tensor functions, no collective.

Shapes: x and its gradients are (N, C, ...); everything else is per channel, (C,), unless said otherwise.
`dims` are all dimensions but the channel's, and n is the number of values per channel, N times the rest.

Per-channel numbers are float64 throughout. They are few, so the cost is nothing, and squared sums about
zero, which is what can be added up over ranks, lose (mean/std)² of the precision they are computed in.

Source: Ioffe & Szegedy, "Batch Normalization", 2015, Algorithm 1 and the gradients of section 3.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Centred(NamedTuple):
    """An input about its own rank's rounded mean."""

    values: Tensor  # (N, C, ...), float32 or float64: x - shift
    shift: Tensor  # (C,), of the same dtype


class Moments(NamedTuple):
    """Mean (C,), biased variance (C,) and number of values per channel () of the whole batch: float64."""

    mean: Tensor
    var: Tensor
    n: Tensor


def centre(x: Tensor) -> Centred:
    """x minus a shift per channel that is close to this rank's mean, exact to the rounding of the difference.

    Half precision is widened to float32, float64 stays. Whatever is computed from the centred values is free
    of the cancellation that a large mean brings. An empty x has the shift 0. The memory format of x is kept.
    """
    x = _widened(x)
    # A mean of nothing is NaN, and would spoil every rank's sums.
    shift = x.mean(_all_but_channel(x)) if x.numel() else x.new_zeros(x.shape[1])
    return Centred(x - _per_channel(shift, x), shift)


def local_sums(centred: Centred) -> Tensor:
    """[Σx, Σx², n]: 2C+1 float64 numbers that add up over ranks.

    With d = x - shift, s = Σd and q = Σd²::

        mean = shift + s/n        Σx  = n·mean
        M₂   = q - s²/n           Σx² = M₂ + n·mean²

    The two sums over d cancel nothing, whatever the mean; the rest is float64. `sum` is used, and no fused
    reduction, because it adds pairwise: a running float32 sum loses 1e-4 of the variance over 1e5 values.
    """
    d, shift = centred
    dims = _all_but_channel(d)
    n = d.numel() // d.shape[1]
    s, q = d.sum(dims).double(), (d * d).sum(dims).double()
    mean = shift.double() + s / max(n, 1)
    m2 = q - s * s / max(n, 1)
    return torch.cat([n * mean, m2 + n * mean * mean, mean.new_full((1,), n)])


def global_moments(sums: Tensor) -> Moments:
    """The moments that belong to the ranks' added `local_sums`: mean = Σx/n, var = Σx²/n - mean².

    Where no rank has a value, everything is 0.
    """
    channels = sums.numel() // 2
    total, total_of_squares, n = sums[:channels], sums[channels : 2 * channels], sums[-1]
    divisor = n.clamp(min=1)
    mean = total / divisor
    # Rounding may carry the variance of a constant channel below 0.
    return Moments(mean, (total_of_squares / divisor - mean * mean).clamp(min=0), n)


def normalise(
    centred: Centred, mean: Tensor, invstd: Tensor, weight: Tensor | None, bias: Tensor | None
) -> Tensor:
    """y = (x - mean)·invstd·weight + bias, written over the centred values.

    It starts from x - shift, so that y keeps its precision where the mean is large.
    """
    d, shift = centred
    scale = invstd if weight is None else invstd * weight
    offset = (shift - mean) * scale if bias is None else (shift - mean) * scale + bias
    return d.mul_(_per_channel(scale, d)).add_(_per_channel(offset, d))


def local_gradient_sums(dy: Tensor, x: Tensor, shift: Tensor, mean: Tensor, invstd: Tensor) -> Tensor:
    """[Σdy, Σdy·x̂]: 2C float64 numbers that add up over ranks, with x̂ = (x - mean)·invstd.

    They are this rank's gradients of bias and weight. With d = x - shift,
    Σdy·x̂ = (Σdy·d - (mean - shift)·Σdy)·invstd.
    """
    if x.numel() == 0:
        return mean.new_zeros(2 * x.shape[1])
    dy, x = _widened(dy), _widened(x)
    # The gradient of batch_norm in evaluation, asked for weight and bias alone and with a variance of 1, is
    # one fused pass for Σdy·(x - shift) and Σdy: less than half the time of the same written as sums.
    _, dy_d, dy_sum = torch.ops.aten.native_batch_norm_backward(
        dy, x, None, shift, torch.ones_like(shift), None, None, False, 0.0, [False, True, True]
    )
    dy_d, dy_sum = dy_d.double(), dy_sum.double()
    return torch.cat([dy_sum, (dy_d - (mean - shift) * dy_sum) * invstd])


def input_gradient(
    dy: Tensor,
    x: Tensor,
    shift: Tensor,
    moments: Moments,
    invstd: Tensor,
    weight: Tensor | None,
    sums: Tensor,
) -> Tensor:
    """dx = weight·invstd·(dy - Σdy/n - x̂·Σdy·x̂/n), of x's dtype and memory format.

    `sums` are the ranks' added `local_gradient_sums`. It is computed as a·dy + b·(x - shift) + c, with
    a = weight·invstd, b = -a·invstd·Σdy·x̂/n and c = -a·Σdy/n - b·(mean - shift).
    """
    mean, _, n = moments
    mean_dy, mean_dy_xhat = (sums / n.clamp(min=1)).chunk(2)
    a = invstd if weight is None else invstd * weight
    b = -a * invstd * mean_dy_xhat
    c = -a * mean_dy - b * (mean - shift)
    wide = _widened(x)
    dx = wide - _per_channel(shift, wide)
    dx.mul_(_per_channel(b, dx)).add_(_per_channel(c, dx)).addcmul_(_widened(dy), _per_channel(a, dx))
    return dx.to(x.dtype)


def _widened(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _all_but_channel(x: Tensor) -> list[int]:
    return [dim for dim in range(x.dim()) if dim != 1]


def _per_channel(values: Tensor, x: Tensor) -> Tensor:
    """(C,) as x's dtype and (1, C, 1, ...), to be broadcast over x."""
    return values.to(x.dtype).view(1, -1, *[1] * (x.dim() - 2))
