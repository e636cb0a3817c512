import pytest
import torch
from torch import Tensor

from sync_bn._arithmetic import (
    Moments,
    global_moments,
    input_gradient,
    local_gradient_sums,
    local_sums,
    normalise,
)
from tests.sync_bn import layouts

DIMS = (0, 2, 3)


def moments_of_parts(x: Tensor, cut: list[int]) -> Moments:
    sums = torch.stack([local_sums(part) for part in torch.split(x, cut)]).sum(0)
    return global_moments(sums)


def variance_error(x: Tensor, moments: Moments) -> float:
    expected = x.double().var(DIMS, correction=0)
    return ((moments.var - expected) / expected).abs().max().item()


@pytest.mark.parametrize("layout", layouts.ALL)
@pytest.mark.parametrize("mean_in_std", [0, 1, 1e2, 1e3, 1e4])
@pytest.mark.parametrize("std", [1e-6, 1e-3, 1.0, 1e3])
def test_variance_of_float32_is_right_to_1e_5_however_large_the_mean(
    std: float, mean_in_std: float, layout: layouts.Layout
) -> None:
    torch.manual_seed(0)
    x = layout(torch.randn(12, 3, 20, 20) * std + mean_in_std * std)

    moments = moments_of_parts(x, [5, 0, 1, 6])

    assert variance_error(x, moments) < 1e-5
    assert moments.n == 12 * 20 * 20
    torch.testing.assert_close(moments.mean, x.double().mean(DIMS), rtol=1e-7, atol=1e-6 * std)


@pytest.mark.parametrize("layout", [layouts.contiguous, layouts.channels_last])
def test_variance_stays_right_over_many_values_and_between_parts_that_differ_much(
    layout: layouts.Layout,
) -> None:
    torch.manual_seed(0)
    x = torch.randn(8, 2, 256, 256)
    x[0] += 1000

    assert variance_error(x, moments_of_parts(layout(x), [8])) < 1e-5
    assert variance_error(x, moments_of_parts(layout(x), [1, 7])) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_statistics_of_other_dtypes_are_those_of_the_stored_values(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = (torch.randn(70, 2, 32, 32) + 3).to(dtype)

    moments = moments_of_parts(x, [30, 40])

    assert variance_error(x, moments) < (1e-13 if dtype == torch.float64 else 1e-6)
    assert moments.n == 71680  # more than float16 can hold


def test_sums_are_2c_plus_1_float64_numbers_whatever_the_input() -> None:
    for dtype in (torch.float16, torch.float32, torch.float64):
        for shape in ((0, 5), (3, 5), (2, 5, 4, 4), (2, 5, 0)):
            sums = local_sums(torch.zeros(shape, dtype=dtype))
            assert (sums.dtype, sums.shape) == (torch.float64, (11,))


def test_constant_channel_has_variance_zero() -> None:
    moments = moments_of_parts(torch.full((9, 2, 3, 3), 12345.678), [4, 5])

    assert moments.var.min() >= 0
    assert moments.var.max() < 1e-6


def test_not_a_number_and_infinity_reach_the_moments() -> None:
    x = torch.randn(4, 2, 3, 3)
    x[0, 0, 0, 0] = torch.nan
    x[1, 1, 0, 0] = torch.inf

    moments = moments_of_parts(x, [1, 3])

    assert moments.var.isnan().all()
    assert not moments.mean.isfinite().any()


@pytest.mark.parametrize("mean_in_std", [0, 1e3])
@pytest.mark.parametrize("layout_dy", layouts.ALL)
@pytest.mark.parametrize("layout_x", layouts.ALL)
def test_forward_and_backward_of_float32_agree_with_float64_in_every_layout(
    layout_x: layouts.Layout, layout_dy: layouts.Layout, mean_in_std: float
) -> None:
    torch.manual_seed(0)
    x, dy = layout_x(torch.randn(6, 3, 5, 7) + mean_in_std), layout_dy(torch.randn(6, 3, 5, 7))
    weight, bias = torch.tensor([0.5, 1, 2]), torch.tensor([-1.0, 0, 3])
    exact_x = x.double().requires_grad_()
    exact_weight = weight.double().requires_grad_()
    exact = torch.nn.functional.batch_norm(exact_x, None, None, exact_weight, bias.double(), training=True)
    exact_dx, exact_dweight = torch.autograd.grad(exact, (exact_x, exact_weight), dy.double())

    moments = moments_of_parts(x, [6])
    invstd = (moments.var + 1e-5).rsqrt()
    y = normalise(x, moments.mean, invstd, weight, bias)
    sums = local_gradient_sums(dy, x, moments.mean, invstd)
    dx = input_gradient(dy, x, moments, invstd, weight, sums)

    # The error of one more rounding of x, as large as its mean is.
    tolerance = 1e-6 * (1 + mean_in_std)
    torch.testing.assert_close(y.double(), exact.detach(), rtol=1e-5, atol=tolerance)
    torch.testing.assert_close(dx.double(), exact_dx, rtol=1e-5, atol=tolerance)
    torch.testing.assert_close(sums[:3], dy.double().sum(DIMS), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(sums[3:], exact_dweight, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("layout", [layouts.contiguous, layouts.channels_last])
def test_output_and_input_gradient_lie_in_memory_as_the_input(layout: layouts.Layout) -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        x = layout(torch.randn(6, 3, 5, 7)).to(dtype)
        moments = moments_of_parts(x, [6])
        y = normalise(x, moments.mean, moments.var, None, None)
        dx = input_gradient(x.contiguous(), x, moments, moments.var, None, torch.ones(6).double())
        assert y.stride() == dx.stride() == x.stride()
        assert y.dtype == dx.dtype == dtype
