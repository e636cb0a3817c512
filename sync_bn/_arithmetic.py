"""The arithmetic of batch normalisation over a batch cut into parts: pure tensor functions, no collective.

Shapes: x, y and their gradients are (N, C, ...); everything else is per channel, (C,), unless said otherwise.
n is the number of values per channel, N times the dimensions after C.

Per-channel numbers are float64 throughout. They are few, so it costs nothing, and squared sums about zero,
which are what adds up over ranks, lose (mean/std)² of the precision that they are computed in.

Source: Ioffe & Szegedy, "Batch Normalization", 2015, Algorithm 1 and the gradients of section 3.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

_BLOCK_ELEMENTS = 2**18  # 1 MiB in float32: within the second-level cache of one core


class Moments(NamedTuple):
    """Mean (C,), biased variance (C,) and number of values per channel () of the whole batch: float64."""

    mean: Tensor
    var: Tensor
    n: Tensor


def local_sums(x: Tensor) -> Tensor:
    """[Σx, Σx², n]: 2C+1 float64 numbers that add up over blocks and ranks; zeros for an empty x.

    In each block, with its rounded mean as shift, d = x - shift, s = Σd and q = Σd²::

        mean = shift + s/n        Σx  = n·mean
        M₂   = q - s²/n           Σx² = M₂ + n·mean²

    The two sums over d cancel nothing, whatever the mean; the rest is float64. They are `sum` and no fused
    reduction, because `sum` adds pairwise: a running float32 sum of 1e5 squares is wrong by 1e-4.
    """
    sums = torch.zeros(2 * x.shape[1] + 1, dtype=torch.float64, device=x.device)
    blocks = _blocks(x)
    # One piece of memory for all blocks, which stays in the cache.
    scratch = torch.empty_like(blocks[0][0], dtype=_computed_in(x)) if blocks else x
    for (block,) in blocks:
        sums += _sums_written_over(scratch[: len(block)].copy_(block))
    return sums


def _sums_written_over(x: Tensor) -> Tensor:
    dims = [dim for dim in range(x.dim()) if dim != 1]
    n = x.numel() // x.shape[1]
    shift = x.mean(dims)
    d = x.sub_(_per_channel(shift, x))
    s, q = d.sum(dims).double(), d.square_().sum(dims).double()
    mean = shift.double() + s / n
    m2 = q - s * s / n
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


def normalise(x: Tensor, mean: Tensor, invstd: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """y = (x - mean)·invstd·weight + bias, of x's dtype and memory format."""
    scale = invstd if weight is None else invstd * weight
    offset = -mean * scale if bias is None else bias - mean * scale
    return _scaled(x, scale, offset)


def local_gradient_sums(dy: Tensor, x: Tensor, mean: Tensor, invstd: Tensor) -> Tensor:
    """[Σdy, Σdy·x̂]: 2C float64 numbers that add up over blocks and ranks; zeros for an empty x.

    They are this rank's gradients of bias and weight. x̂ = (x - mean)·invstd, and with a shift that is the
    rounded mean, and d = x - shift: Σdy·x̂ = (Σdy·d - (mean - shift)·Σdy)·invstd.
    """
    shift = mean.to(_computed_in(x))
    dy_sum, dy_d = torch.zeros_like(mean), torch.zeros_like(mean)
    for dy_block, x_block in _blocks(dy, x):
        block_dy_sum, block_dy_d = _centred_reduction(dy_block, x_block, shift)
        dy_sum += block_dy_sum
        dy_d += block_dy_d
    return torch.cat([dy_sum, (dy_d - (mean - shift) * dy_sum) * invstd])


def input_gradient(
    dy: Tensor, x: Tensor, moments: Moments, invstd: Tensor, weight: Tensor | None, sums: Tensor
) -> Tensor:
    """dx = weight·invstd·(dy - Σdy/n - x̂·Σdy·x̂/n), of x's dtype and memory format.

    `sums` are the ranks' added `local_gradient_sums`. It is computed as a·dy + b·x + c, with
    a = weight·invstd, b = -a·invstd·Σdy·x̂/n and c = -a·Σdy/n - b·mean.
    """
    mean, _, n = moments
    mean_dy, mean_dy_xhat = (sums / n.clamp(min=1)).chunk(2)
    a = invstd if weight is None else invstd * weight
    b = -a * invstd * mean_dy_xhat
    c = -a * mean_dy - b * mean
    wide = x.to(_computed_in(x))
    return _scaled(wide, b, c).addcmul_(dy.to(wide.dtype), _per_channel(a, wide)).to(x.dtype)


def _scaled(x: Tensor, scale: Tensor, offset: Tensor) -> Tensor:
    """x·scale + offset. batch_norm in evaluation is this in one pass, for half precision too.

    Where the mean is large the two terms cancel; the error is that of rounding x once more.
    """
    dtype = _computed_in(x)
    zero, one = torch.zeros_like(scale, dtype=dtype), torch.ones_like(scale, dtype=dtype)
    return F.batch_norm(x, zero, one, scale.to(dtype), offset.to(dtype), training=False, eps=0.0)


def _centred_reduction(dy: Tensor, x: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """Σdy and Σdy·(x - shift).

    It is the gradient of batch_norm in evaluation with a variance of 1, asked for bias and weight alone: one
    pass that is fused in torch, in half the time of the same written as sums.
    """
    one, mask = torch.ones_like(shift), [False, True, True]
    _, dy_d, dy_sum = torch.ops.aten.native_batch_norm_backward(
        dy, x, one, shift, one, None, None, False, 0.0, mask
    )
    return dy_sum, dy_d


def _blocks(*tensors: Tensor) -> list[tuple[Tensor, ...]]:
    """The tensors' samples in blocks that fit a CPU's cache, or all at once elsewhere; none if x is empty.

    Several passes over a block cost little more than one, and temporaries are small: fresh memory of the
    size of the input takes longer to get from the system than to fill.
    """
    x = tensors[0]
    if x.numel() == 0:
        return []
    samples = max(1, _BLOCK_ELEMENTS * len(x) // x.numel()) if x.device.type == "cpu" else len(x)
    return list(zip(*(torch.split(tensor, samples) for tensor in tensors), strict=True))


def _computed_in(x: Tensor) -> torch.dtype:
    """float32 for half precision; float32 and float64 as they are."""
    return torch.promote_types(x.dtype, torch.float32)


def _per_channel(values: Tensor, x: Tensor) -> Tensor:
    """(C,) as (1, C, 1, ...) of x's dtype, to be broadcast over x."""
    return values.to(x.dtype).view(1, -1, *[1] * (x.dim() - 2))
