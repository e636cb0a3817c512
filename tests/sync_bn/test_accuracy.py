"""How far float32 and half precision are from float64 over the same values, next to torch's own layer."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sync_bn import SyncBatchNorm, _native
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
    local_sums,
    passes_of,
    reference_steps,
    step,
    steps_in_rank,
    variance_error,
)


@BY_PASSES
@pytest.mark.parametrize("layout", layouts.ALL)
@pytest.mark.parametrize("mean_in_std", [0, 1, 1e2, 1e3, 1e4])
@pytest.mark.parametrize("std", [1e-6, 1e-3, 1.0, 1e3])
def test_variance_of_float32_is_right_to_1e_5_however_large_the_mean(
    std: float, mean_in_std: float, layout: layouts.Layout, passes: Passes
) -> None:
    torch.manual_seed(0)
    x = layout(torch.randn(12, 16, 9, 9) * std + mean_in_std * std)

    with passes_of(passes):
        parts = [local_sums(part) for part in torch.split(x, [5, 7])]

    assert variance_error(x, torch.stack(parts).sum(0)) < 1e-5


@BY_PASSES
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("layout", [layouts.contiguous, layouts.channels_last])
def test_statistics_of_half_precision_are_those_of_the_stored_values(
    layout: layouts.Layout, dtype: torch.dtype, passes: Passes
) -> None:
    torch.manual_seed(0)
    x = layout((torch.randn(16, 16, 16, 16) + 30).to(dtype))

    with passes_of(passes):
        assert variance_error(x) < 1e-6


def errors(actual: Step, exact: Step) -> tuple[float, float]:
    """Of the output and the input gradient: the largest, in parts of the largest value."""

    def error(a: Tensor, e: Tensor) -> float:
        return ((a.double() - e).abs().max() / e.abs().max()).item()

    return error(actual.output, exact.output), error(actual.input_gradient, exact.input_gradient)


SCALES = {
    torch.float32: [(std, mean) for std in (1e-3, 1.0, 1e3) for mean in (0.0, 1e2, 1e4)],
    torch.bfloat16: [(std, mean) for std in (1e-3, 1.0, 1e3) for mean in (0.0, 1e1)],
    torch.float16: [(std, mean) for std in (1e-3, 1.0, 1e2) for mean in (0.0, 1e1)],
}


@BY_PASSES
@pytest.mark.parametrize("stored", ["layer in float32", "layer in the input's dtype"])
@pytest.mark.parametrize("layout", [layouts.contiguous, layouts.channels_last])
@pytest.mark.parametrize("dtype", SCALES)
def test_error_is_never_above_twice_that_of_torchs_layer(
    dtype: torch.dtype, layout: layouts.Layout, stored: str, passes: Passes
) -> None:
    torch.manual_seed(0)
    plain = batch_norm(4, 32)
    own = OwnPasses(32)
    own.load_state_dict(plain.state_dict())
    if stored == "layer in the input's dtype":
        plain, own = plain.to(dtype), own.to(dtype)

    for std, mean_in_std in SCALES[dtype]:
        centred = torch.randn(8, 32, 9, 9)
        x = layout(((centred + mean_in_std) * std).to(dtype))
        # Along with x, so that all terms of the input gradient count.
        dy = layout((torch.randn(8, 32, 9, 9) + centred).to(dtype))
        (exact,) = reference_steps(plain, [([x], [dy])])
        of_torch = errors(step(plain, x, dy), exact)
        with passes_of(passes):
            ours = errors(step(own, x, dy), exact)

        for error, of_torchs in zip(ours, of_torch, strict=True):
            assert error <= 2 * of_torchs + torch.finfo(dtype).eps / 4, (std, mean_in_std, ours, of_torch)


@BY_PASSES
@pytest.mark.parametrize("layout", [layouts.contiguous, layouts.channels_last])
def test_mean_of_ten_thousand_standard_deviations_costs_the_loops_no_digits(
    layout: layouts.Layout, passes: Passes
) -> None:
    torch.manual_seed(0)
    centred = torch.randn(8, 32, 9, 9)
    x, dy = layout(centred + 1e4), layout(centred + torch.randn(8, 32, 9, 9) + 1)
    plain = batch_norm(4, 32)
    own = OwnPasses(32)
    own.load_state_dict(plain.state_dict())
    (exact,) = reference_steps(plain, [([x], [dy])])

    with passes_of(passes):
        actual = step(own, x, dy)

    if passes == "triton" or (passes == "native" and _native.is_built()):
        assert max(errors(actual, exact)) < 2e-6
    for gradient, expected in zip(actual.parameter_gradients, exact.parameter_gradients, strict=True):
        assert (gradient - expected).abs().max() < 2e-6 * expected.abs().max()


def step_under_autocast(
    rank: int, layers: nn.Sequential, xs: list[Tensor], dtype: torch.dtype, passes: Passes
) -> tuple[torch.dtype, Tensor, dict[str, Tensor]]:
    with passes_of(passes), torch.autocast(device().type, dtype):
        layers = layers.to(device())
        narrow = layers[0](xs[rank].to(device()))
        y = layers[1](narrow)
        torch.autograd.backward(y.float().square().sum())
    return y.dtype, narrow.detach().cpu(), {name: b.cpu() for name, b in layers[1].named_buffers()}


@BY_PASSES
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_under_autocast_buffers_are_float32_and_right_to_its_rounding(
    ranks_of: RanksOf, dtype: torch.dtype, passes: Passes
) -> None:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(4, 32), SyncBatchNorm(32, momentum=1.0))
    xs = [torch.randn(300, 4), torch.randn(200, 4)]

    by_rank = ranks_of(2).run(step_under_autocast, layers, xs, dtype, passes)

    values = torch.cat([narrow for _, narrow, _ in by_rank]).double()
    for output_dtype, narrow, buffers in by_rank:
        assert output_dtype == narrow.dtype == dtype
        assert buffers["running_var"].dtype == torch.float32
        torch.testing.assert_close(buffers["running_var"].double(), values.var(0), rtol=1e-6, atol=0)
        torch.testing.assert_close(buffers["running_mean"].double(), values.mean(0), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("mean", [0.0, 100.0])
@pytest.mark.parametrize("options", [{}, {"momentum": None}, {"momentum": 0.3}], ids=str)
def test_float64_is_right_to_1e_10(ranks_of: RanksOf, options: dict[str, Any], mean: float) -> None:
    torch.manual_seed(0)
    layer = batch_norm(4, 17, **options).double()
    batches = [
        (
            [torch.randn(n, 17, 5, 4).double() + mean for n in (2, 3)],
            [torch.randn(n, 17, 5, 4).double() for n in (2, 3)],
        )
        for _ in range(3)
    ]

    by_rank = ranks_of(2).run(steps_in_rank, layer, batches)

    for steps, reference in zip(zip(*by_rank, strict=True), reference_steps(layer, batches), strict=True):
        assert_as_one_process(steps, reference, rtol=1e-10, atol=1e-10)
