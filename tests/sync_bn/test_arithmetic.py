"""Sums that add up over parts of a batch, the moments they belong to, and the running statistics."""

import pytest
import torch
from torch import Tensor, nn

from sync_bn import _arithmetic, _native, _triton
from sync_bn._arithmetic import Moments, global_moments
from tests.sync_bn import layouts
from tests.sync_bn.one_process import (
    BY_PASSES,
    Passes,
    device,
    local_sums,
    needs_triton,
    passes_of,
    variance_error,
)


def sums_of_parts(x: Tensor, cut: list[int], passes: Passes) -> Tensor:
    with passes_of(passes):
        sums = [local_sums(part) for part in torch.split(x, cut)]
    return torch.stack(sums).sum(0)


@BY_PASSES
@pytest.mark.parametrize("layout", layouts.ALL)
def test_sums_of_parts_add_up_to_the_moments_of_the_whole(layout: layouts.Layout, passes: Passes) -> None:
    torch.manual_seed(0)
    x = layout(torch.randn(12, 17, 5, 7) + 3)

    mean, var, n = global_moments(sums_of_parts(x, [5, 0, 1, 6], passes))

    assert n == 12 * 5 * 7
    torch.testing.assert_close(mean, x.double().mean((0, 2, 3)), rtol=1e-7, atol=1e-8)
    torch.testing.assert_close(var, x.double().var((0, 2, 3), correction=0), rtol=1e-6, atol=0)


@BY_PASSES
@pytest.mark.parametrize("layout", [layouts.contiguous, layouts.channels_last])
def test_variance_stays_right_over_many_values_and_between_parts_that_differ_much(
    layout: layouts.Layout, passes: Passes
) -> None:
    torch.manual_seed(0)
    x = torch.randn(8, 16, 128, 128)
    x[0] += 1000

    assert variance_error(x, sums_of_parts(layout(x), [8], passes)) < 1e-5
    assert variance_error(x, sums_of_parts(layout(x), [1, 7], passes)) < 1e-5


def test_sums_are_2c_plus_1_float64_numbers_whatever_the_input() -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        for shape in ((0, 17), (3, 17), (2, 17, 4, 4), (2, 17, 0)):
            x, weights = torch.zeros(shape, dtype=dtype), torch.ones(shape[0], *[1] * (len(shape) - 1))
            of_torch = _arithmetic.local_sums(x), _arithmetic.local_sums(x, weights)
            for sums in (*of_torch, sums_of_parts(x, [shape[0]], "native")):
                assert (sums.dtype, sums.shape) == (torch.float64, (35,))


@BY_PASSES
def test_number_of_values_is_more_than_half_precision_can_count(passes: Passes) -> None:
    x = torch.ones(70_000, 16)
    for dtype in (torch.float16, torch.bfloat16):
        assert global_moments(sums_of_parts(x.to(dtype), [30_000, 40_000], passes)).n == 70_000


@BY_PASSES
@pytest.mark.parametrize("layout", [layouts.contiguous, layouts.channels_last])
def test_constant_channel_has_variance_0(layout: layouts.Layout, passes: Passes) -> None:
    x = layout(torch.full((9, 17, 5, 5), 12345.678))

    moments = global_moments(sums_of_parts(x, [4, 5], passes))

    assert moments.var.min() >= 0
    assert moments.var.max() < 1e-6
    torch.testing.assert_close(moments.mean, x[0, :, 0, 0].double(), rtol=1e-7, atol=0)


@BY_PASSES
@pytest.mark.parametrize("layout", [layouts.contiguous, layouts.channels_last])
def test_not_a_number_and_infinity_reach_the_moments_of_their_channels_alone(
    layout: layouts.Layout, passes: Passes
) -> None:
    x = layout(torch.randn(4, 17, 5, 5))
    x[0, 0, 0, 0] = torch.nan
    x[1, 1, 4, 4] = torch.inf
    x[3, 16, 4, 4] = -torch.inf

    mean, var, _ = global_moments(sums_of_parts(x, [1, 3], passes))

    touched = [0, 1, 16]
    assert var[touched].isnan().all()
    assert not mean[touched].isfinite().any()
    assert var[2:16].isfinite().all()
    assert mean[2:16].isfinite().all()


def test_weighted_sums_are_those_of_repeated_values() -> None:
    torch.manual_seed(0)
    x, times = torch.randn(5, 3, 4, dtype=torch.float64), torch.tensor([2, 0, 1, 3, 1])

    weighted = _arithmetic.local_sums(x, times.double().reshape(5, 1, 1))

    torch.testing.assert_close(
        weighted, _arithmetic.local_sums(x.repeat_interleave(times, dim=0)), rtol=1e-13, atol=1e-13
    )


@BY_PASSES
@pytest.mark.parametrize("layout", layouts.ALL)
def test_values_without_weight_do_not_cost_the_variance_its_digits(
    layout: layouts.Layout, passes: Passes
) -> None:
    torch.manual_seed(0)
    real, nothing = torch.randn(4, 16, 9, 9) + 1e4, torch.zeros(4, 16, 9, 9)
    weights = torch.cat([torch.ones(4, 1, 9, 9), torch.zeros(4, 1, 9, 9)])

    with passes_of(passes):
        sums = local_sums(layout(torch.cat([real, nothing])), weights)

    assert variance_error(real, sums) < 1e-5


@BY_PASSES
@pytest.mark.parametrize("momentum", [0.1, 1.0, 0.0, None])
def test_running_statistics_follow_torchs_layer(momentum: float | None, passes: Passes) -> None:
    torch.manual_seed(0)
    ours, theirs = (nn.BatchNorm1d(3, momentum=momentum) for _ in range(2))
    batches = [torch.randn(n, 3) for n in (2, 7, 4)]

    for x in batches:
        theirs(x)
        update(
            ours,
            Moments(x.double().mean(0), x.double().var(0, correction=0), torch.tensor(len(x)).double()),
            passes,
        )

    torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), rtol=1e-6, atol=1e-6)


@BY_PASSES
@pytest.mark.parametrize("momentum", [0.1, 1.0, None])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_batch_without_a_value_updates_nothing(
    dtype: torch.dtype, momentum: float | None, passes: Passes
) -> None:
    layer = nn.BatchNorm1d(3, momentum=momentum, dtype=dtype)
    before = {name: value.clone() for name, value in layer.state_dict().items()}

    update(layer, global_moments(torch.zeros(7, dtype=torch.float64)), passes)

    torch.testing.assert_close(layer.state_dict(), before, rtol=0, atol=0)


@pytest.mark.parametrize("passes", ["native", pytest.param("triton", marks=needs_triton)])
@pytest.mark.parametrize("n", [1.5, 2.0, 2.5, 1e9])
def test_loops_and_torch_update_alike_for_any_number_of_values(n: float, passes: Passes) -> None:
    native, of_torch = (nn.BatchNorm1d(3, momentum=0.3) for _ in range(2))
    moments = Moments(torch.randn(3).double(), torch.rand(3).double(), torch.tensor(n).double())

    update(native, moments, passes)
    update(of_torch, moments, "torch")

    torch.testing.assert_close(native.state_dict(), of_torch.state_dict(), rtol=1e-6, atol=1e-7)


def update(layer: nn.BatchNorm1d, moments: Moments, passes: Passes) -> None:
    with passes_of(passes):
        layer.to(device())
        buffers = layer.running_mean, layer.running_var, layer.num_batches_tracked
        moments = Moments(*(values.to(device()) for values in moments))
        if not (
            _native.update_running_statistics(*buffers, layer.momentum, moments)
            or _triton.update_running_statistics(*buffers, layer.momentum, moments)
        ):
            _arithmetic.update_running_statistics(*buffers, layer.momentum, moments)
    layer.cpu()
