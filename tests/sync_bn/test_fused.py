"""activation= and residual=: what the separate layers compute, with less kept in between."""

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sync_bn import SyncBatchNorm, _native
from sync_bn._activation import NAMES
from tests.sync_bn import layouts
from tests.sync_bn.conftest import RanksOf
from tests.sync_bn.one_process import (
    BY_PASSES,
    OwnPasses,
    Passes,
    Step,
    assert_as_one_process,
    batch_norm,
    device,
    needs_triton,
    passes_of,
    step,
)

ACTIVATIONS: dict[str | None, Callable[[Tensor], Tensor]] = {
    None: lambda y: y,
    "relu": F.relu,
    "leaky_relu": F.leaky_relu,
    "silu": F.silu,
}
BY_NAME = pytest.mark.parametrize("activation", [*ACTIVATIONS])
WITH_RESIDUAL = pytest.mark.parametrize("with_residual", [True, False])
TRAINING = pytest.mark.parametrize("training", [True, False])
EXACTNESS = pytest.mark.parametrize(
    ("dtype", "passes", "tolerance"),
    [
        (torch.float64, "torch", 1e-10),
        (torch.float32, "torch", 1e-5),
        (torch.float32, "native", 1e-5),
        pytest.param(torch.float32, "triton", 1e-5, marks=needs_triton),
    ],
)


class Separate(nn.Module):
    """The layers that the fused one stands for."""

    def __init__(self, batch_norm: _BatchNorm, activation: str | None) -> None:
        super().__init__()
        self.batch_norm, self.activation = batch_norm, ACTIVATIONS[activation]

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        y = self.batch_norm(x)
        return self.activation(y if residual is None else y + residual)


def fused(
    plain: _BatchNorm, activation: str | None, kind: type[SyncBatchNorm] = SyncBatchNorm
) -> SyncBatchNorm:
    layer = kind(plain.num_features, activation=activation, dtype=plain.weight.dtype)
    layer.load_state_dict(plain.state_dict())
    return layer.train(plain.training)


def reference(plain: _BatchNorm, activation: str | None, tensors: list[Tensor]) -> Step:
    """A step of the separate layers in float64, with the buffers' names of the fused one."""
    s = step(Separate(plain.double(), activation), *(tensor.double() for tensor in tensors))
    buffers = {name.removeprefix("batch_norm."): buffer for name, buffer in s.buffers.items()}
    return Step(**{**vars(s), "buffers": buffers})


def own_step(rank: int, layer: SyncBatchNorm, parts: list[list[Tensor]], passes: Passes) -> Step:
    with passes_of(passes):
        return step(layer, *(part[rank] for part in parts))


def case(
    rest: tuple[int, ...], dtype: torch.dtype, *, training: bool = True, with_residual: bool = True
) -> tuple[_BatchNorm, list[Tensor]]:
    """A layer, and x, dz and the residual."""
    torch.manual_seed(0)
    plain = batch_norm(1 + len(rest), rest[0])
    plain(torch.randn(4, *rest))  # so that it has running statistics to evaluate with
    tensors = [torch.randn(5, *rest, dtype=dtype) for _ in range(3 if with_residual else 2)]
    return plain.to(dtype).train(training), tensors


@TRAINING
@WITH_RESIDUAL
@BY_NAME
@EXACTNESS
@pytest.mark.parametrize(
    ("rest", "layout"),
    [
        ((33,), layouts.contiguous),
        ((3, 5, 4), layouts.contiguous),
        ((17, 5, 4), layouts.channels_last),
        ((3, 5, 4), layouts.reversed_dims),
    ],
)
def test_it_is_the_separate_layers(
    rest: tuple[int, ...],
    layout: layouts.Layout,
    dtype: torch.dtype,
    passes: Passes,
    tolerance: float,
    activation: str | None,
    with_residual: bool,
    training: bool,
) -> None:
    plain, tensors = case(rest, dtype, training=training, with_residual=with_residual)
    layer = fused(plain, activation, OwnPasses if training else SyncBatchNorm)
    tensors = [layout(t) for t in tensors]

    with passes_of(passes):
        actual = step(layer, *tensors)

    expected = reference(plain, activation, tensors)
    assert_as_one_process([actual], expected, rtol=tolerance, atol=tolerance)
    if training and layout is not layouts.reversed_dims:
        assert actual.output.stride() == actual.input_gradient.stride() == tensors[0].stride()


@WITH_RESIDUAL
@BY_NAME
@EXACTNESS
@pytest.mark.parametrize("cut", [[2, 3], [5, 0]], ids=str)
def test_over_ranks_it_is_the_separate_layers_in_one_process(
    ranks_of: RanksOf,
    cut: list[int],
    dtype: torch.dtype,
    passes: Passes,
    tolerance: float,
    activation: str | None,
    with_residual: bool,
) -> None:
    plain, tensors = case((17, 3, 2), dtype, with_residual=with_residual)
    layer = fused(plain, activation)
    parts = [[layouts.channels_last(part) for part in torch.split(t, cut)] for t in tensors]

    steps = ranks_of(2).run(own_step, layer, parts, passes)

    assert_as_one_process(steps, reference(plain, activation, tensors), rtol=tolerance, atol=tolerance)


def step_in_a_group_of_one(rank: int, layer: SyncBatchNorm, tensors: list[Tensor]) -> Step:
    layer.process_group = [dist.new_group([other]) for other in range(2)][rank]
    return step(layer, *tensors)


@BY_NAME
def test_alone_it_is_the_separate_layers_with_and_without_a_process_group(
    ranks_of: RanksOf, activation: str | None
) -> None:
    plain, tensors = case((17, 3, 2), torch.float64)
    layer = fused(plain, activation)

    steps = [*ranks_of(2).run(step_in_a_group_of_one, layer, tensors), step(layer, *tensors)]

    expected = reference(plain, activation, tensors)
    for s in steps:
        assert_as_one_process([s], expected, rtol=1e-10, atol=1e-10)


@BY_PASSES
@WITH_RESIDUAL
@BY_NAME
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", [layouts.contiguous, layouts.channels_last])
def test_in_half_precision_it_is_no_farther_from_float64_than_the_separate_layers(
    layout: layouts.Layout, dtype: torch.dtype, activation: str | None, with_residual: bool, passes: Passes
) -> None:
    plain, tensors = case((17, 5, 7), torch.float32, with_residual=with_residual)
    tensors = [layout(t.to(dtype)) for t in tensors]
    layer = fused(plain, activation, OwnPasses)
    separate = step(Separate(plain, activation), *tensors)

    with passes_of(passes):
        actual = step(layer, *tensors)

    expected = reference(plain, activation, tensors)
    for name in ("output", "input_gradient") + ("residual_gradient",) * with_residual:
        # Where rounding takes a value to the other side of 0, single gradients differ: hence a mean.
        ours, theirs = (
            (getattr(s, name).double() - getattr(expected, name)).square().mean().sqrt()
            for s in (actual, separate)
        )
        assert getattr(actual, name).dtype == dtype
        assert ours <= 1.1 * theirs + 1e-8


@TRAINING
@BY_PASSES
@BY_NAME
def test_residual_of_another_dtype_does_not_change_that_of_the_output(
    activation: str | None, passes: Passes, training: bool
) -> None:
    plain, (x, dz, residual) = case((17, 5, 4), torch.float32, training=training)
    layer = fused(plain, activation, OwnPasses if training else SyncBatchNorm)
    x, dz = x.bfloat16(), dz.bfloat16()

    with passes_of(passes):
        actual = step(layer, x, dz, residual)

    assert actual.output.dtype == actual.input_gradient.dtype == torch.bfloat16
    assert actual.residual_gradient is not None
    assert actual.residual_gradient.dtype == torch.float32
    expected = reference(plain, activation, [x, dz, residual])
    torch.testing.assert_close(actual.output.double(), expected.output, rtol=0.02, atol=0.02)


@BY_PASSES
@BY_NAME
def test_zero_infinity_and_not_a_number_are_treated_as_by_torchs_activations(
    activation: str | None, passes: Passes
) -> None:
    x = torch.tensor([-1.0, 0.0, 1.0]).repeat(16, 8)[:, None].repeat(1, 2, 1)  # (16, 2, 24), of mean 0
    residual, dz = torch.zeros_like(x), torch.ones_like(x)
    residual[0, 0, 0], residual[1, 0, 0] = torch.inf, -torch.inf
    dz[2, 0, 0], dz[3, 0, 0], dz[3, 0, 1] = torch.inf, -torch.inf, 5.0  # where y is -1, -1 and 0
    layer, separate = OwnPasses(2, activation=activation), Separate(nn.BatchNorm1d(2), activation)

    with_nan = torch.where(residual == torch.inf, torch.nan, residual)

    with passes_of(passes):
        actual = step(layer, x, dz, residual)
        output_with_nan = layer(x.to(device()), with_nan.to(device())).cpu()

    expected = step(separate, x, dz, residual)
    torch.testing.assert_close(actual.output, expected.output, equal_nan=True)
    torch.testing.assert_close(actual.residual_gradient, expected.residual_gradient, equal_nan=True)
    torch.testing.assert_close(output_with_nan, separate(x, with_nan), equal_nan=True)
    at_zero = {None: 5.0, "relu": 0.0, "leaky_relu": 0.05, "silu": 2.5}[activation]
    assert actual.residual_gradient is not None
    assert actual.residual_gradient[3, 0, 1] == pytest.approx(at_zero)


def kept_for_backward(layer: nn.Module, *inputs: Tensor) -> int:
    """Bytes that the backward of a layer keeps alive, beside those of its inputs."""
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        z = layer(*inputs)
    for tensor in inputs:
        storages.pop(tensor.untyped_storage().data_ptr(), None)
    del z
    return sum(storages.values())


@BY_PASSES
@WITH_RESIDUAL
@pytest.mark.parametrize("activation", NAMES)
def test_nothing_of_the_size_of_the_input_is_kept_for_the_backward(
    activation: str, with_residual: bool, passes: Passes
) -> None:
    inputs = [torch.randn(8, 16, 20, 20, requires_grad=True) for _ in range(1 + with_residual)]

    with passes_of(passes):
        layer, given = OwnPasses(16, activation=activation), [i.detach().to(device()) for i in inputs]
        ours = kept_for_backward(layer.to(device()), *(i.requires_grad_() for i in given))

    assert kept_for_backward(Separate(nn.BatchNorm2d(16), activation), *inputs) > inputs[0].nbytes
    assert ours < inputs[0].nbytes / 10


@BY_PASSES
def test_residual_is_kept_only_if_an_activation_follows(passes: Passes) -> None:
    x, dz, residual = (torch.randn(8, 16, 20) for _ in range(3))
    for activation, is_kept in ((None, False), ("relu", True)):
        with passes_of(passes):
            x, dz = x.to(device()), dz.to(device())
            alive = residual.to(device(), copy=True).requires_grad_()
            z = OwnPasses(16, activation=activation).to(device())(x, alive * 1)
        kept = [t.untyped_storage().nbytes() for t in z.grad_fn.saved_tensors if t is not None]
        assert kept.count(x.nbytes) == 1 + is_kept
        torch.autograd.backward(z, dz)
        assert alive.grad is not None


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes that operations allocate, those alive at once: now and at most."""

    now = peak = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        known = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        result = func(*args, **kwargs or {})
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.untyped_storage()._cdata not in known:
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        def freed(size: int = storage.nbytes()) -> None:
            self.now -= size

        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, freed)


def peak_bytes(layer: nn.Module, *inputs: Tensor) -> int:
    mode = LiveBytes()  # type: ignore[no-untyped-call]
    with mode:
        layer(*inputs)
    return int(mode.peak)


@pytest.mark.skipif(not _native.is_built(), reason="there was no C++ compiler to build it")
@WITH_RESIDUAL
@pytest.mark.parametrize("activation", ["relu", "leaky_relu"])
def test_forward_of_the_loops_needs_memory_for_the_output_alone(activation: str, with_residual: bool) -> None:
    inputs = [torch.randn(8, 16, 20, 20, requires_grad=True) for _ in range(1 + with_residual)]

    ours = peak_bytes(OwnPasses(16, activation=activation), *inputs)
    separate = peak_bytes(Separate(nn.BatchNorm2d(16), activation), *inputs)

    assert inputs[0].nbytes <= ours < 1.2 * inputs[0].nbytes
    assert separate >= 2 * inputs[0].nbytes


@pytest.mark.parametrize("name", ["", "ReLU", "gelu"])
def test_unknown_activation_is_refused_with_those_that_are_known(name: str) -> None:
    with pytest.raises(ValueError, match=f"activation='{name}'.*relu, leaky_relu, silu"):
        SyncBatchNorm(3, activation=name)


@TRAINING
def test_residual_of_another_shape_is_refused(training: bool) -> None:
    with pytest.raises(ValueError, match=r"residual of shape \(4, 1, 5\); expected the input's, \(4, 3, 5\)"):
        SyncBatchNorm(3).train(training)(torch.zeros(4, 3, 5), torch.zeros(4, 1, 5))


def test_activation_is_told_by_repr() -> None:
    assert "activation=silu" in repr(SyncBatchNorm(3, activation="silu"))
    assert "activation" not in repr(SyncBatchNorm(3))
