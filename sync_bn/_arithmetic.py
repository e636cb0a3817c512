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

    `shift` is the mean, rounded; `rest`, what it lacks, mean - shift, and `invstd`, 1/sqrt(var + eps), are
    float64.
    """

    shift: Tensor
    scale: Tensor
    offset: Tensor
    rest: Tensor
    invstd: Tensor


class LocalGradients(NamedTuple):
    """[Σdy, Σdy·x̂] (2C,) float64, this rank's gradients of bias and weight, and dy: dz behind the activation.

    dy is still dz, and has to come through `activation_left`, where that is not None.
    """

    sums: Tensor
    dy: Tensor
    activation_left: Activation | None


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


def scaling(x: Tensor, moments: Moments, eps: float, weight: Tensor | None, bias: Tensor | None) -> Scaling:
    """The coefficients of y = (x - mean)/sqrt(var + eps)·weight + bias."""
    dtype = computed_in(x)
    invstd = (moments.var + eps).rsqrt()
    shift = moments.mean.to(dtype)
    rest = moments.mean - shift
    scale = invstd if weight is None else invstd * weight
    offset = -rest * scale if bias is None else bias - rest * scale
    return Scaling(shift, scale.to(dtype), offset.to(dtype), rest, invstd)


def local_sums(x: Tensor, w: Tensor | None = None) -> Tensor:
    """[Σwx, Σwx², Σw]: 2C+1 float64 numbers that add up over ranks.

    w: the weights of the values, (N, 1, ...) to be broadcast over x; 1 where it is None.

    An empty x has sums too, zeros that come from x: were they made from nothing, they would be the same for
    all layers, and a compiler might let several layers share one collective, on this rank alone.
    """
    wide, dims = x.to(computed_in(x)), _all_but_channels(x)
    values = x.numel() // max(x.shape[1], 1)
    if w is None:
        shift = wide.sum(dims) / max(values, 1)
        d = wide - per_channel(shift, x)
        return sums_about_zero(shift, d.sum(dims), (d * d).sum(dims), values)
    n = w.double().sum() * (values / max(w.numel(), 1))
    # The mean of what counts: zeros that do not, where a batch is padded, would move it far away.
    shift = (w * wide).sum(dims) / torch.where(n == 0, 1, n).to(wide.dtype)
    d = wide - per_channel(shift, x)
    wd = w * d
    return sums_about_zero(shift, wd.sum(dims), (wd * d).sum(dims), n)


def normalise(
    x: Tensor,
    sums: Tensor,
    eps: float,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: Activation | None,
) -> tuple[Tensor, Moments, Scaling]:
    """z = activation(y + residual), of x's dtype and memory format, with the ranks' added `local_sums`."""
    moments = global_moments(sums)
    by = scaling(x, moments, eps, weight, bias)
    y = _before_activation(x, by, residual)
    z = y if activation is None else activation(y)
    return z.to(x.dtype), moments, by


def local_gradient_sums(
    dz: Tensor, x: Tensor, by: Scaling, residual: Tensor | None, activation: Activation | None
) -> LocalGradients:
    """Σdy·x̂ = (Σdy·(x - shift) - rest·Σdy)·invstd, and all zeros for an empty x."""
    dy = dz if activation is None else activation.gradient(dz, _before_activation(x, by, residual))
    wide, dims = dy.to(computed_in(x)), _all_but_channels(x)
    dy_sum = wide.sum(dims).double()
    dy_d = (wide * (x - per_channel(by.shift, x))).sum(dims).double()
    return LocalGradients(torch.cat([dy_sum, (dy_d - by.rest * dy_sum) * by.invstd]), dy, None)


def input_gradient(
    local: LocalGradients,
    x: Tensor,
    by: Scaling,
    n: Tensor,
    weight: Tensor | None,
    sums: Tensor,
    w: Tensor | None,
) -> Tensor:
    """dx = weight·invstd·(dy - w/n·(Σdy + x̂·Σdy·x̂)), of x's dtype and memory format.

    `sums` are the ranks' added [Σdy, Σdy·x̂]; w as in `local_sums`. It is computed as
    a·dy + w·(b·(x - shift) + c), with a = weight·invstd, b = -a·invstd·Σdy·x̂/n and c = -b·rest - a·Σdy/n.
    """
    mean_dy, mean_dy_xhat = (sums / n.clamp(min=1)).chunk(2)
    a = by.invstd if weight is None else by.invstd * weight
    b = -a * by.invstd * mean_dy_xhat
    c = -b * by.rest - a * mean_dy
    wide = x.to(computed_in(x))
    dx = _scaled(wide, by.shift, b.to(wide.dtype), c.to(wide.dtype))
    if w is not None:
        dx = dx * w
    return torch.addcmul(dx, local.dy.to(wide.dtype), per_channel(a.to(wide.dtype), x)).to(x.dtype)


def update_running_statistics(
    running_mean: Tensor | None,
    running_var: Tensor | None,
    batches: Tensor | None,
    momentum: float | None,
    moments: Moments,
) -> None:
    """running = (1 - momentum)·running + momentum·new, with the unbiased variance; None averages all batches.

    Nothing changes if there was no value in all. That is decided on the device: the host does not know.
    A buffer that is None is left out; without a count of batches their average is not taken, as in
    `nn.BatchNorm*d`.
    """
    mean, var, n = moments
    any_values = (n > 0).double()
    if batches is not None:
        batches.add_(any_values.to(batches.dtype))
    if momentum is None:
        share = any_values * (0.0 if batches is None else 1 / batches.double().clamp(min=1))
    else:
        share = any_values * momentum
    if running_mean is not None:
        running_mean.copy_(running_mean.double().lerp(mean, share))
    if running_var is not None:
        unbiased_var = var * torch.where(n > 1, n / (n - 1), 1.0)
        running_var.copy_(running_var.double().lerp(unbiased_var, share))


def computed_in(x: Tensor) -> torch.dtype:
    """float32 for half precision; float32 and float64 as they are."""
    return torch.promote_types(x.dtype, torch.float32)


def per_channel(values: Tensor, x: Tensor) -> Tensor:
    """(C,) as (1, C, 1, ...), to be broadcast over x."""
    return values.view(1, -1, *[1] * (x.dim() - 2))


def _before_activation(x: Tensor, by: Scaling, residual: Tensor | None) -> Tensor:
    y = _scaled(x, by.shift, by.scale, by.offset)
    return y if residual is None else y + residual


def _scaled(x: Tensor, shift: Tensor, scale: Tensor, offset: Tensor) -> Tensor:
    """batch_norm in evaluation is this in one pass, and keeps x's dtype and memory format."""
    return F.batch_norm(x, shift, torch.ones_like(scale), scale, offset, training=False, eps=0.0)


def _all_but_channels(x: Tensor) -> list[int]:
    return [dim for dim in range(x.dim()) if dim != 1]
