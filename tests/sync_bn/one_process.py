"""The reference: what one process computes in float64 from the concatenated batch, and a step to compare.

x and dy are (N, C, ...) tensors, one for each rank where there are several.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Literal
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sync_bn import SyncBatchNorm, _arithmetic, _native, convert_sync_batchnorm

Passes = Literal["native", "torch"]
BATCH_NORM_OF_DIM = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}


@dataclass(frozen=True, kw_only=True)
class Step:
    """All that one forward and backward leave behind."""

    output: Tensor
    input_gradient: Tensor
    parameter_gradients: list[Tensor]
    buffers: dict[str, Tensor]
    residual_gradient: Tensor | None = None


@contextmanager
def passes_of(which: Passes) -> Iterator[None]:
    """The passes over the data are the loops for the CPU, as far as they are built, or torch's operations."""
    with patch.object(_native, "_LIBRARY", _native._LIBRARY if which == "native" else None):
        yield


class OwnPasses(SyncBatchNorm):
    """Goes its own way through the data in one process too, where it would leave it to torch's layer."""

    def forward(
        self, input: Tensor, residual: Tensor | None = None, sample_weight: Tensor | None = None
    ) -> Tensor:
        self._check_extras(input, residual, sample_weight)
        return self._normalised(input, residual, sample_weight, synchronized=False)


def variance_error(x: Tensor, sums: Tensor | None = None) -> float:
    """Of the variance from x's sums, or from these, relative to x's variance in float64; worst channel."""
    sums = (_native.passes(x, None) or _arithmetic).local_sums(x, None) if sums is None else sums
    expected = x.double().var([dim for dim in range(x.dim()) if dim != 1], correction=0)
    return ((_arithmetic.global_moments(sums).var - expected) / expected).abs().max().item()


def batch_norm(dim: int, channels: int, **options: Any) -> _BatchNorm:
    """The nn.BatchNorm class for inputs of `dim` dimensions, with parameters that are not 1 and 0."""
    layer = BATCH_NORM_OF_DIM[dim](channels, **options)
    for parameter in layer.parameters():
        nn.init.uniform_(parameter, 0.5, 2.0)
    return layer


def weighted_batch_norm(x: Tensor, weight: Tensor, bias: Tensor, w: Tensor) -> Tensor:
    """The definition with weights w, (N, 1, ...) to be broadcast over x, in differentiable operations."""
    dims = [dim for dim in range(x.dim()) if dim != 1]
    share = w / w.expand_as(x[:, :1]).sum()
    mean = (share * x).sum(dims, keepdim=True)
    var = (share * (x - mean) ** 2).sum(dims, keepdim=True)
    weight, bias = (parameter.view(1, -1, *[1] * (x.dim() - 2)) for parameter in (weight, bias))
    return (x - mean) / (var + 1e-5).sqrt() * weight + bias


def step(
    layer: nn.Module,
    x: Tensor,
    dy: Tensor,
    residual: Tensor | None = None,
    sample_weight: Tensor | None = None,
) -> Step:
    x, parameters = x.detach().requires_grad_(), list(layer.parameters())
    residuals = [] if residual is None else [residual.detach().requires_grad_()]
    extras = {"residual": residuals[0] if residuals else None, "sample_weight": sample_weight}
    y = layer(x, **{name: extra for name, extra in extras.items() if extra is not None})
    input_gradient, *others = torch.autograd.grad(y, (x, *parameters, *residuals), dy)
    return Step(
        output=y.detach(),
        input_gradient=input_gradient,
        parameter_gradients=list(others[: len(parameters)]),
        buffers={name: buffer.clone() for name, buffer in layer.named_buffers()},
        residual_gradient=others[-1] if residuals else None,
    )


def steps_in_rank(
    rank: int,
    layer: nn.Module,
    batches: Sequence[tuple[list[Tensor], list[Tensor]]],
    passes: Passes = "native",
) -> list[Step]:
    """Runs in a rank: one step after the other, each with its part of (all ranks' x, all ranks' dy)."""
    layer = convert_sync_batchnorm(layer)
    with passes_of(passes):
        return [step(layer, xs[rank], dys[rank]) for xs, dys in batches]


def reference_steps(
    layer: nn.Module, batches: Sequence[tuple[list[Tensor], list[Tensor]]], dtype: torch.dtype = torch.float64
) -> list[Step]:
    layer = deepcopy(layer).to(dtype)
    return [step(layer, torch.cat(xs).to(dtype), torch.cat(dys).to(dtype)) for xs, dys in batches]


def assert_as_one_process(steps: Sequence[Step], reference: Step, **tolerance: Any) -> None:
    """The ranks' steps put together are the reference's: parts concatenated, parameter gradients added up."""

    def assert_close(actual: Tensor, expected: Tensor) -> None:
        torch.testing.assert_close(actual.to(expected.dtype), expected, **tolerance)

    assert_close(torch.cat([s.output for s in steps]), reference.output)
    assert_close(torch.cat([s.input_gradient for s in steps]), reference.input_gradient)
    for index, expected in enumerate(reference.parameter_gradients):
        added_up = torch.stack([s.parameter_gradients[index].double() for s in steps]).sum(0)
        assert_close(added_up, expected)
    if reference.residual_gradient is not None:
        residual_gradients = [s.residual_gradient for s in steps if s.residual_gradient is not None]
        assert_close(torch.cat(residual_gradients), reference.residual_gradient)
    for s in steps:
        assert s.buffers.keys() == reference.buffers.keys()
        for name, expected in reference.buffers.items():
            assert_close(s.buffers[name], expected)
