"""The reference: what one process computes in float64 from the concatenated batch, and a step to compare.

x and dy are (N, C, ...) tensors, one for each rank where there are several.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Literal
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sync_bn import SyncBatchNorm, _arithmetic, _native, _triton, convert_sync_batchnorm
from sync_bn._function import Call, Tensors, passes_for

Passes = Literal["native", "triton", "torch"]


def kernels_device() -> torch.device | None:
    """Where Triton's kernels run: a GPU or, interpreted, the CPU; None: nowhere here."""
    if find_spec("triton") is None:
        return None
    gpu = torch.accelerator.current_accelerator(check_available=True)
    if gpu is not None and gpu.type in _triton._DEVICES:
        return torch.device(gpu.type, 0)
    return torch.device("cpu") if os.environ.get("TRITON_INTERPRET") == "1" else None


needs_triton = pytest.mark.skipif(
    kernels_device() is None,
    reason="Triton's kernels need Triton, and a GPU or TRITON_INTERPRET=1: make test-triton",
)
BY_PASSES = pytest.mark.parametrize("passes", ["native", pytest.param("triton", marks=needs_triton), "torch"])
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
def interpreted() -> Iterator[None]:
    """Triton's interpreter with fewer and larger programs: it takes long for each, whatever its size.

    It rounds to bfloat16 as GPUs do, to the nearest: by itself it cuts digits off. What a kernel computes
    outside the tensor, and leaves out, is no reason for NumPy to warn.
    """
    numpy, interpreter = import_module("numpy"), import_module("triton.runtime.interpreter")
    builder = interpreter.InterpreterBuilder
    cut_off = builder.create_fp_trunc

    def rounded(self: Any, source: Any, kind: Any) -> Any:
        if str(kind.scalar) != "bf16":
            return cut_off(self, source, kind)
        bits = torch.tensor(source.data).bfloat16().view(torch.uint16)
        return interpreter.TensorHandle(bits.numpy(), kind.scalar)

    with (
        patch.multiple(_triton, _TILE=32768, _PROGRAMS=4),
        patch.object(builder, "create_fp_trunc", rounded),
        numpy.errstate(all="ignore"),
    ):
        yield


_device = torch.device("cpu")


def device() -> torch.device:
    """Where `step` and `local_sums` compute: the device of the passes in force."""
    return _device


@contextmanager
def passes_of(which: Passes, on: torch.device | None = None) -> Iterator[None]:
    """The passes over the data are the loops for the CPU, as far as they are built, Triton's kernels, on the
    device `on` or where they run here, or torch's operations."""
    global _device
    with ExitStack() as stack:
        devices = []
        if which != "native":
            stack.enter_context(patch.object(_native, "_LIBRARY", None))
        if which == "triton":
            device = on or kernels_device()
            assert device is not None
            _device, devices = device, [device.type]
            if device.type == "cpu":
                stack.enter_context(interpreted())
            assert _triton._works_on(device)
        stack.enter_context(patch.object(_triton, "_DEVICES", devices))
        try:
            yield
        finally:
            _device = torch.device("cpu")


def local_sums(x: Tensor, w: Tensor | None = None) -> Tensor:
    """Of the passes that the layer would take for x."""
    x, w = x.to(_device), None if w is None else w.to(_device)
    call = Call(0.0, None, synchronized=False, group=None, handshake=None, observed=False)
    sums: Tensor = passes_for(Tensors(x, None, None, None, w), call).local_sums(x, w)
    return sums.cpu()


class OwnPasses(SyncBatchNorm):
    """Goes its own way through the data in one process too, where it would leave it to torch's layer."""

    def forward(
        self, input: Tensor, residual: Tensor | None = None, sample_weight: Tensor | None = None
    ) -> Tensor:
        self._check_extras(input, residual, sample_weight)
        return self._normalised(input, residual, sample_weight, synchronized=False)


def variance_error(x: Tensor, sums: Tensor | None = None) -> float:
    """Of the variance from x's sums, or from these, relative to x's variance in float64; worst channel."""
    sums = local_sums(x) if sums is None else sums
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
    layer.to(_device)
    x, dy = x.detach().to(_device).requires_grad_(), dy.to(_device)
    parameters = list(layer.parameters())
    residuals = [] if residual is None else [residual.detach().to(_device).requires_grad_()]
    weights = None if sample_weight is None else sample_weight.to(_device)
    extras = {"residual": residuals[0] if residuals else None, "sample_weight": weights}
    y = layer(x, **{name: extra for name, extra in extras.items() if extra is not None})
    gradients = torch.autograd.grad(y, (x, *parameters, *residuals), dy)
    input_gradient, *others = (gradient.cpu() for gradient in gradients)
    return Step(
        output=y.detach().cpu(),
        input_gradient=input_gradient,
        parameter_gradients=list(others[: len(parameters)]),
        buffers={name: buffer.clone().cpu() for name, buffer in layer.named_buffers()},
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
