"""sample_weight: how often a sample, or a position of it, counts in the statistics."""

import pytest
import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from sync_bn import SyncBatchNorm
from tests.sync_bn import layouts
from tests.sync_bn.conftest import RanksOf
from tests.sync_bn.one_process import (
    BY_PASSES,
    OwnPasses,
    Passes,
    Step,
    assert_as_one_process,
    batch_norm,
    passes_of,
    reference_steps,
    step,
    weighted_batch_norm,
)

CUTS = pytest.mark.parametrize("cut", [[5], [2, 3], [0, 5], [1, 3, 1]], ids=str)


def own_step(rank: int, layer: SyncBatchNorm, xs: list[Tensor], dys: list[Tensor], ws: list[Tensor]) -> Step:
    return step(layer, xs[rank], dys[rank], sample_weight=ws[rank])


def steps_of_ranks(
    ranks_of: RanksOf, cut: list[int], layer: SyncBatchNorm, x: Tensor, dy: Tensor, weights: Tensor
) -> list[Step]:
    parts = [list(torch.split(tensor, cut)) for tensor in (x, dy, weights)]
    return ranks_of(len(cut)).run(own_step, layer, *parts) if len(cut) > 1 else [own_step(0, layer, *parts)]


def like(plain: _BatchNorm) -> SyncBatchNorm:
    layer = SyncBatchNorm(plain.num_features, dtype=torch.float64)
    layer.load_state_dict(plain.state_dict())
    return layer


@CUTS
@pytest.mark.parametrize("dtype", [torch.bool, torch.long, torch.float16, torch.float64], ids=str)
def test_padded_batch_with_a_mask_is_the_batch_without_padding(
    ranks_of: RanksOf, dtype: torch.dtype, cut: list[int]
) -> None:
    torch.manual_seed(0)
    # Sequences of these lengths; the last rank of the last cut has one that is all padding.
    real = torch.arange(6) < torch.tensor([4, 6, 1, 3, 0])[:, None]
    x, dy = torch.randn(5, 3, 6).double() + 4, torch.randn(5, 3, 6).double()
    dy.movedim(1, -1)[~real] = 0  # a loss over real elements alone
    plain = batch_norm(2, 3).double()
    values, gradients = (t.movedim(1, -1)[real] for t in (x, dy))
    (expected,) = reference_steps(plain, [([values], [gradients])])

    steps = steps_of_ranks(ranks_of, cut, like(plain), x, dy, real.to(dtype))

    outputs, dx = (torch.cat([getattr(s, name) for s in steps]) for name in ("output", "input_gradient"))
    without_padding = Step(
        output=outputs.movedim(1, -1)[real],
        input_gradient=dx.movedim(1, -1)[real],
        parameter_gradients=[
            torch.stack(g).sum(0) for g in zip(*(s.parameter_gradients for s in steps), strict=True)
        ],
        buffers=steps[0].buffers,
    )
    assert_as_one_process([without_padding], expected, rtol=1e-10, atol=1e-10)
    assert not dx.movedim(1, -1)[~real].any()
    for s in steps[1:]:
        torch.testing.assert_close(s.buffers, steps[0].buffers, rtol=0, atol=0)


@CUTS
def test_whole_numbers_are_samples_repeated(ranks_of: RanksOf, cut: list[int]) -> None:
    torch.manual_seed(0)
    times = torch.tensor([2, 1, 0, 3, 1])
    x, dy = torch.randn(5, 3, 4, 2).double(), torch.randn(5, 3, 4, 2).double()
    plain = batch_norm(4, 3).double()
    indices = torch.arange(5).repeat_interleave(times)
    (repeated,) = reference_steps(plain, [([x[indices]], [dy[indices]])])
    # Each copy has its share in the loss.
    shares = dy * times.view(-1, 1, 1, 1)

    steps = steps_of_ranks(ranks_of, cut, like(plain), x, shares, times)

    added = torch.zeros_like(x).index_add_(0, indices, repeated.input_gradient)
    assert_close(torch.cat([s.output for s in steps])[indices], repeated.output)
    assert_close(torch.cat([s.input_gradient for s in steps]), added)
    for index, expected in enumerate(repeated.parameter_gradients):
        assert_close(torch.stack([s.parameter_gradients[index] for s in steps]).sum(0), expected)
    for s in steps:
        torch.testing.assert_close(s.buffers, repeated.buffers, rtol=1e-10, atol=1e-10)


def assert_close(actual: Tensor, expected: Tensor, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


@CUTS
@pytest.mark.parametrize("by", ["sample", "position"])
@pytest.mark.parametrize("rest", [(3,), (3, 4), (3, 4, 2), (3, 2, 2, 2)], ids=str)
def test_any_weights_give_the_weighted_mean_and_variance(
    ranks_of: RanksOf, rest: tuple[int, ...], by: str, cut: list[int]
) -> None:
    torch.manual_seed(0)
    x, dy = torch.randn(5, *rest).double().requires_grad_(), torch.randn(5, *rest).double()
    weights = 3 * torch.rand((5, *rest[1:]) if by == "position" else (5,), dtype=torch.float64)
    layer = like(batch_norm(1 + len(rest), 3).double())
    spatial = weights.shape[1:] if by == "position" else [1] * (len(rest) - 1)
    y = weighted_batch_norm(x, layer.weight, layer.bias, weights.view(5, 1, *spatial))
    gradients = torch.autograd.grad(y, (x, layer.weight, layer.bias), dy)

    steps = steps_of_ranks(ranks_of, cut, layer, x, dy, weights)

    assert_close(torch.cat([s.output for s in steps]), y.detach())
    assert_close(torch.cat([s.input_gradient for s in steps]), gradients[0])
    for index, expected in enumerate(gradients[1:]):
        assert_close(torch.stack([s.parameter_gradients[index] for s in steps]).sum(0), expected)


@pytest.mark.parametrize("layout", [layouts.contiguous, layouts.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@BY_PASSES
def test_weights_of_1_change_only_the_rounding(
    passes: Passes, dtype: torch.dtype, layout: layouts.Layout
) -> None:
    torch.manual_seed(0)
    x, dy = (layout(torch.randn(4, 16, 5, 5) + mean).to(dtype) for mean in (3, 0))

    with passes_of(passes):
        weighted, plain = (step(OwnPasses(16), x, dy, sample_weight=w) for w in (torch.ones(4, 5, 5), None))

    tolerance = 1e-5 if dtype == torch.float32 else 1e-2
    assert_as_one_process([weighted], plain, rtol=tolerance, atol=tolerance)
    assert weighted.output.stride() == weighted.input_gradient.stride() == x.stride()


def error_and_state(rank: int, weights: list[list[float]]) -> tuple[str, dict[str, Tensor], bool]:
    layer = SyncBatchNorm(3, momentum=None)
    x = torch.randn(len(weights[rank]), 3, 4, requires_grad=True)
    try:
        y = layer(x, sample_weight=torch.tensor(weights[rank]) / 4)
    except ValueError as error:
        return str(error), layer.state_dict(), True
    torch.autograd.backward(y.sum())
    assert x.grad is not None
    return "", layer.state_dict(), bool(y.isfinite().all() and x.grad.isfinite().all())


@pytest.mark.parametrize("weights", [[[1, 0, 0], [0, 0]], [[0, 0, 0], [0.5, 0.5]], [[0.25, 0], []]], ids=str)
def test_weights_of_at_most_1_in_all_are_the_same_error_on_every_rank(
    ranks_of: RanksOf, weights: list[list[float]]
) -> None:
    for message, state, _ in ranks_of(2).run(error_and_state, weights):
        assert "more than 1 value per channel" in message
        torch.testing.assert_close(state, SyncBatchNorm(3).state_dict())


def test_weights_of_0_in_all_update_nothing(ranks_of: RanksOf) -> None:
    for message, state, finite in ranks_of(2).run(error_and_state, [[0, 0, 0], [0, 0]]):
        assert message == ""
        assert finite
        torch.testing.assert_close(state, SyncBatchNorm(3).state_dict(), rtol=0, atol=0)


def test_a_little_more_than_1_in_all_is_enough(ranks_of: RanksOf) -> None:
    for message, state, _ in ranks_of(2).run(error_and_state, [[1, 0, 0], [0, 0.01]]):
        assert message == ""
        assert state["num_batches_tracked"] == 1


@pytest.mark.parametrize("shape", [(), (3,), (4, 3), (4, 1, 5), (4, 3, 5), (5,), (4, 6)], ids=str)
def test_wrong_shape_is_refused_with_the_shape_and_what_is_expected(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="sample_weight of shape") as caught:
        SyncBatchNorm(3)(torch.zeros(4, 3, 5), sample_weight=torch.ones(shape))
    for text in (str(shape), "(4,)", "(4, 5)"):
        assert text in str(caught.value)


def test_evaluation_ignores_weights_where_it_has_running_statistics() -> None:
    layer, x = SyncBatchNorm(3).eval(), torch.randn(4, 3, 5)
    assert torch.equal(layer(x, sample_weight=torch.tensor([1, 0, 0, 0])), layer(x))


def test_evaluation_without_running_statistics_weighs_its_own_batch() -> None:
    torch.manual_seed(0)
    layer, x = SyncBatchNorm(3, track_running_stats=False).eval(), torch.randn(4, 3, 5)
    expected = layer(x[:2])
    torch.testing.assert_close(layer(x, sample_weight=torch.tensor([1, 1, 0, 0]))[:2], expected)


def test_no_gradient_flows_into_the_weights() -> None:
    weights = torch.rand(4, requires_grad=True)
    torch.autograd.backward(SyncBatchNorm(3)(torch.randn(4, 3), sample_weight=weights).sum())
    assert weights.grad is None
