"""The arithmetic of batch normalisation over a batch split over ranks: pure functions, no collectives.

Shapes: x, y, z, the residual and their gradients are (N, C, ...). All other tensors are per channel, (C,),
unless stated otherwise. n is the number of values per channel: N times the dimensions after C, or the sum of
the weights of these values. Per-channel numbers are float64. They are few, and sums about zero, which can be
added over ranks, lose a factor of (mean/std)² in precision.

`local_sums`, `normalise`, `local_gradient_sums` and `input_gradient` are the four passes over the data. These
versions run on any device, and torch.compile fuses them; `_native` has the same four for CPUs.

Source: Ioffe & Szegedy, "Batch Normalization", 2015, Algorithm 1 and the gradients of section 3.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from sync_bn._activation import Activation


class Moments(NamedTuple):
    """Mean (C,), biased variance (C,) and number of values per channel () of the global batch, in float64."""

    mean: Tensor
    var: Tensor
    n: Tensor


class Scaling(NamedTuple):
    """The coefficients of y = (x - shift)·scale + offset, all (C,).

    shift is the rounded mean; shift, scale and offset have the compute dtype. rest = mean - shift, the
    rounding error of shift, and invstd = 1/sqrt(var + eps) are float64.
    """

    shift: Tensor
    scale: Tensor
    offset: Tensor
    rest: Tensor
    invstd: Tensor


class LocalGradients(NamedTuple):
    """This rank's [Σdy, Σdy·x̂], (2C,) float64, which are its gradients of bias and weight; and dy.

    dy is the gradient of the activation's input. If `pending_activation` is not None, it is still dz, and the
    activation's gradient has to be applied.
    """

    sums: Tensor
    dy: Tensor
    pending_activation: Activation | None


def sums_about_zero(shift: Tensor, s: Tensor, q: Tensor, n: Tensor | float) -> Tensor:
    """Returns [Σx, Σx², n], (2C+1,) float64, from s = Σ(x - shift) and q = Σ(x - shift)², all (C,).

    With a shift close to the mean, s and q have no cancellation; the conversion is in float64.
    """
    shift, s, q = shift.double(), s.double(), q.double()
    total = shift * n
    return torch.cat([s + total, q + shift * (2 * s + total), shift.new_ones(1) * n])


def global_moments(sums: Tensor) -> Moments:
    """Returns the moments from the sum of all ranks' `local_sums`: mean = Σx/n, var = Σx²/n - mean².

    All are 0 if no rank has a value. The layer refuses weights whose sum is in (0, 1].
    """
    n = sums[-1]
    mean, mean_of_squares = (sums[:-1] / n.clamp(min=1)).chunk(2)
    # Rounding may make the variance of a constant channel negative.
    return Moments(mean, torch.addcmul(mean_of_squares, mean, mean, value=-1).clamp(min=0), n)


def scaling(x: Tensor, moments: Moments, eps: float, weight: Tensor | None, bias: Tensor | None) -> Scaling:
    """Returns the coefficients of y = (x - mean)/sqrt(var + eps)·weight + bias."""
    dtype = compute_dtype(x)
    invstd = (moments.var + eps).rsqrt()
    shift = moments.mean.to(dtype)
    rest = moments.mean - shift
    scale = invstd if weight is None else invstd * weight
    offset = -rest * scale if bias is None else bias - rest * scale
    return Scaling(shift, scale.to(dtype), offset.to(dtype), rest, invstd)


def local_sums(x: Tensor, w: Tensor | None = None) -> Tensor:
    """Returns [Σwx, Σwx², Σw], (2C+1,) float64, which can be added over ranks.

    w: the weights of the values, (N, 1, ...), broadcastable over x; None: all 1.

    For an empty x, the sums are zeros computed from x. If they were constants, a compiler could merge the
    collectives of several layers, on this rank only.
    """
    wide, dims = x.to(compute_dtype(x)), _all_but_channels(x)
    values = x.numel() // max(x.shape[1], 1)
    if w is None:
        shift = wide.sum(dims) / max(values, 1)
        d = wide - per_channel(shift, x)
        return sums_about_zero(shift, d.sum(dims), (d * d).sum(dims), values)
    n = w.double().sum() * (values / max(w.numel(), 1))
    # The weighted mean: padding zeros without weight would move an unweighted one far from it.
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
    """Returns z = activation(y + residual), with x's dtype and memory format, the moments and coefficients.

    sums: the sum of all ranks' `local_sums`, (2C+1,) float64.
    """
    moments = global_moments(sums)
    coefficients = scaling(x, moments, eps, weight, bias)
    y = _before_activation(x, coefficients, residual)
    z = y if activation is None else activation(y)
    return z.to(x.dtype), moments, coefficients


def local_gradient_sums(
    dz: Tensor, x: Tensor, coefficients: Scaling, residual: Tensor | None, activation: Activation | None
) -> LocalGradients:
    """Returns Σdy and Σdy·x̂ = (Σdy·(x - shift) - rest·Σdy)·invstd; zeros for an empty x."""
    dy = dz if activation is None else activation.gradient(dz, _before_activation(x, coefficients, residual))
    wide, dims = dy.to(compute_dtype(x)), _all_but_channels(x)
    dy_sum = wide.sum(dims).double()
    dy_d = (wide * (x - per_channel(coefficients.shift, x))).sum(dims).double()
    return LocalGradients(
        torch.cat([dy_sum, (dy_d - coefficients.rest * dy_sum) * coefficients.invstd]), dy, None
    )


def input_gradient(
    local: LocalGradients,
    x: Tensor,
    coefficients: Scaling,
    n: Tensor,
    weight: Tensor | None,
    sums: Tensor,
    w: Tensor | None,
) -> Tensor:
    """Returns dx = weight·invstd·(dy - w/n·(Σdy + x̂·Σdy·x̂)), with x's dtype and memory format.

    sums: [Σdy, Σdy·x̂] added over all ranks, (2C,) float64. w: as in `local_sums`. Computed as
    a·dy + w·(b·(x - shift) + c), with a = weight·invstd, b = -a·invstd·Σdy·x̂/n and c = -b·rest - a·Σdy/n.
    """
    mean_dy, mean_dy_xhat = (sums / n.clamp(min=1)).chunk(2)
    a = coefficients.invstd if weight is None else coefficients.invstd * weight
    b = -a * coefficients.invstd * mean_dy_xhat
    c = -b * coefficients.rest - a * mean_dy
    wide = x.to(compute_dtype(x))
    dx = _scaled(wide, coefficients.shift, b.to(wide.dtype), c.to(wide.dtype))
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
    """Updates in place: running = (1 - momentum)·running + momentum·new, with the unbiased variance.

    momentum: None: the running statistics are the average over all batches. Skips buffers that are None.
    Without a count of batches and without momentum, changes nothing, as in `nn.BatchNorm*d`. Changes nothing
    if no rank had a value; the device decides that, without a host synchronisation.
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


def compute_dtype(x: Tensor) -> torch.dtype:
    """Returns float32 for half precision; otherwise the dtype of x."""
    return torch.promote_types(x.dtype, torch.float32)


def per_channel(values: Tensor, x: Tensor) -> Tensor:
    """Returns (C,) values as (1, C, 1, ...), broadcastable over x."""
    return values.view(1, -1, *[1] * (x.dim() - 2))


def _before_activation(x: Tensor, coefficients: Scaling, residual: Tensor | None) -> Tensor:
    y = _scaled(x, coefficients.shift, coefficients.scale, coefficients.offset)
    return y if residual is None else y + residual


def _scaled(x: Tensor, shift: Tensor, scale: Tensor, offset: Tensor) -> Tensor:
    """Returns (x - shift)·scale + offset. batch_norm in evaluation does it in one pass, in x's format."""
    return F.batch_norm(x, shift, torch.ones_like(scale), scale, offset, training=False, eps=0.0)


def _all_but_channels(x: Tensor) -> list[int]:
    return [dim for dim in range(x.dim()) if dim != 1]
