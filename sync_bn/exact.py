"""Exact sums of tensors: numbers are rounded to a grid of integers, which add up to the same in any order."""

import torch
from torch import Tensor

from sync_bn import _native


def add_rounded(values: Tensor, exponent: int, limit: float, sums: Tensor) -> int:
    """Adds round(values / 2^exponent), ties to even, to `sums` in place.

    values: any floating dtype. limit: entries above it in magnitude, and NaN, are left out; 2^-exponent times
    it must be at most 2^62. sums: int64, contiguous, of the same shape. Returns how many entries were left
    out. The same bits with and without the compiled loop, whatever the number of threads.
    """
    left_out = _native.add_rounded(values, exponent, limit, sums)
    if left_out is not None:
        return left_out
    wide = values.double()
    fits = wide.abs() <= limit
    wide = torch.where(fits, wide, 0.0)
    sums.add_(wide.mul_(2.0**-exponent).round_().to(torch.int64))
    return wide.numel() - int(fits.sum())


def take(sums: Tensor, exponent: int, dtype: torch.dtype) -> Tensor:
    """Returns sums times 2^exponent, rounded to `dtype`, and sets `sums`, int64, to 0."""
    values = _native.take_sums(sums, exponent) if dtype == torch.float32 else None
    if values is None:
        values = sums.double().mul_(2.0**exponent).to(dtype)
        sums.zero_()
    return values
