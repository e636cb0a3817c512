"""The arithmetic of batch normalisation over a batch cut into parts: pure tensor functions, no collective.

Shapes: x, y, z, the residual and their gradients are (N, C, ...); everything else is per channel, (C,),
unless said otherwise. n is the number of values per channel: N times the dimensions after C, or the sum of
the weights of these values. Per-channel numbers are float64: they are few, and sums about zero, which are
what adds up over ranks, lose (mean/std)² of the precision that they are computed in.

`local_sums`, `normalise`, `local_gradient_sums` and `input_gradient` are the four passes over the data. Here
they are what any device runs and torch.compile fuses; `_native` has the same four for a CPU.

Source: Ioffe & Szegedy, "Batch Normalization", 2015, Algorithm 1 and the gradients of section 3.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from sync_bn._activation import Activation


class Moments(NamedTuple):
    """Mean (C,), biased variance (C,) and number of values per channel () of the whole batch: float64."""

    mean: Tensor
    var: Tensor
    n: Tensor


class Scaling(NamedTuple):
    """y = (x - shift)·scale + offset, in the dtype that is computed in.

    `shift` is the mean, rounded, and `rest` what it lacks: mean - shift, in float64.
    """

    shift: Tensor
    scale: Tensor
    offset: Tensor
    rest: Tensor


class LocalGradients(NamedTuple):
    """[Σdy, Σdy·(x - shift)] (2C,) float64, and dy: what is left of dz behind the activation.

    It has not come through `activation_left` yet, which is not None where dy is still dz.
    """

    sums: Tensor
    dy: Tensor
    activation_left: Activation | None


class InputGradient(NamedTuple):
    """dx = of_dy·dy + w·(of_x·(x - shift) + constant), in the dtype that is computed in."""

    of_dy: Tensor
    of_x: Tensor
    constant: Tensor


def sums_about_zero(shift: Tensor, s: Tensor, q: Tensor, n: Tensor | float) -> Tensor:
    """[Σx, Σx², n], 2C+1 float64 numbers, of s = Σ(x - shift), q = Σ(x - shift)², all (C,).

    Sums over x minus about its mean cancel nothing, whatever the mean; the rest is float64.
    """
    shift, s, q = shift.double(), s.double(), q.double()
    total = shift * n
    return torch.cat([s + total, q + shift * (2 * s + total), shift.new_ones(1) * n])


def global_moments(sums: Tensor) -> Moments:
    """The moments that belong to the ranks' added `local_sums`: mean = Σx/n, var = Σx²/n - mean².

    Where no rank has a value, everything is 0. Weights that add up to less than 1 are refused by the layer.
    """
    n = sums[-1]
    mean, mean_of_squares = (sums[:-1] / n.clamp(min=1)).chunk(2)
    # Rounding may carry the variance of a constant channel below 0.
    return Moments(mean, torch.addcmul(mean_of_squares, mean, mean, value=-1).clamp(min=0), n)


def scaling(x: Tensor, mean: Tensor, invstd: Tensor, weight: Tensor | None, bias: Tensor | None) -> Scaling:
    """Those of y = (x - mean)·invstd·weight + bias."""
    dtype = computed_in(x)
    shift = mean.to(dtype)
    rest = mean - shift
    scale = invstd if weight is None else invstd * weight
    offset = -rest * scale if bias is None else bias - rest * scale
    return Scaling(shift, scale.to(dtype), offset.to(dtype), rest)


def gradient_coefficients(
    x: Tensor, n: Tensor, invstd: Tensor, weight: Tensor | None, by: Scaling, sums: Tensor
) -> InputGradient:
    """Those of dx = weight·invstd·(dy - w/n·(Σdy + x̂·Σdy·x̂)), with the ranks' added [Σdy, Σdy·x̂] (2C,)."""
    dtype = computed_in(x)
    mean_dy, mean_dy_xhat = (sums / n.clamp(min=1)).chunk(2)
    of_dy = invstd if weight is None else invstd * weight
    slope = of_dy * invstd * mean_dy_xhat
    constant = slope * by.rest - of_dy * mean_dy
    return InputGradient(of_dy.to(dtype), -slope.to(dtype), constant.to(dtype))


def parameter_gradients(sums: Tensor, by: Scaling, invstd: Tensor) -> Tensor:
    """[Σdy, Σdy·x̂] of [Σdy, Σdy·(x - shift)]: this rank's gradients of bias and weight, (2C,) float64."""
    dy_sum, dy_d = sums.chunk(2)
    return torch.cat([dy_sum, (dy_d - by.rest * dy_sum) * invstd])


def local_sums(x: Tensor, w: Tensor | None = None) -> Tensor:
    """[Σwx, Σwx², Σw]: 2C+1 float64 numbers that add up over ranks; zeros for an empty x.

    w: the weights of the values, (N, 1, ...) to be broadcast over x; 1 where it is None.
    """
    if x.numel() == 0:
        return torch.zeros(2 * x.shape[1] + 1, dtype=torch.float64, device=x.device)
    wide, dims = x.to(computed_in(x)), _all_but_channels(x)
    shift = wide.mean(dims)
    d = wide - per_channel(shift, x)
    if w is None:
        return sums_about_zero(shift, d.sum(dims), (d * d).sum(dims), x.numel() // x.shape[1])
    wd = w * d
    n = w.double().sum() * (d[:, 0].numel() / w.numel())
    return sums_about_zero(shift, wd.sum(dims), (wd * d).sum(dims), n)


def normalise(x: Tensor, by: Scaling, residual: Tensor | None, activation: Activation | None) -> Tensor:
    """z = activation(y + residual), of x's dtype and memory format."""
    y = _scaled(x, by) if residual is None else _scaled(x, by) + residual
    return y if activation is None else activation(y)


def local_gradient_sums(
    dz: Tensor, x: Tensor, by: Scaling, residual: Tensor | None, activation: Activation | None
) -> LocalGradients:
    dy = dz
    if activation is not None:
        y = _scaled(x, by) if residual is None else _scaled(x, by) + residual
        dy = activation.gradient(dz, y)
    wide, dims = dy.to(computed_in(x)), _all_but_channels(x)
    dy_sum, dy_d = wide.sum(dims), (wide * (x - per_channel(by.shift, x))).sum(dims)
    return LocalGradients(torch.cat([dy_sum, dy_d]).double(), dy, None)


def input_gradient(
    local: LocalGradients, x: Tensor, by: Scaling, of: InputGradient, w: Tensor | None
) -> Tensor:
    """dx, of x's dtype and memory format; w as in `local_sums`."""
    d = x.to(computed_in(x))
    dx = _scaled(d, by._replace(scale=of.of_x, offset=of.constant))
    if w is not None:
        dx = dx * w
    return torch.addcmul(dx, local.dy.to(d.dtype), per_channel(of.of_dy, d)).to(x.dtype)


def computed_in(x: Tensor) -> torch.dtype:
    """float32 for half precision; float32 and float64 as they are."""
    return torch.promote_types(x.dtype, torch.float32)


def per_channel(values: Tensor, x: Tensor) -> Tensor:
    """(C,) as (1, C, 1, ...), to be broadcast over x."""
    return values.view(1, -1, *[1] * (x.dim() - 2))


def _scaled(x: Tensor, by: Scaling) -> Tensor:
    """batch_norm in evaluation is this in one pass, and keeps x's dtype and memory format."""
    one = torch.ones_like(by.scale)
    return F.batch_norm(x, by.shift, one, by.scale, by.offset, training=False, eps=0.0)


def _all_but_channels(x: Tensor) -> list[int]:
    return [dim for dim in range(x.dim()) if dim != 1]
