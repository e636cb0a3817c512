"""What Ioffe & Szegedy, "Batch Normalization", 2015, state of their layer, where two ranks share the batch.

m is the number of values per channel of the whole batch, x̂ the normalised input, s = 1/√(Var + ε). Everything
is float64, and one rank has a single sample: what two ranks would each do for themselves holds none of it.
"""

from typing import NamedTuple, cast

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from sync_bn import convert_sync_batchnorm, revert_sync_batchnorm
from tests.sync_bn.conftest import RanksOf
from tests.sync_bn.one_process import Step, batch_norm, steps_in_rank

CUT = [6, 1]
EPS = 0.1  # so large that a term forgotten with ε would be seen


class Normalised(NamedTuple):
    """The batch by the definitions of Algorithm 1: one process, elementary operations."""

    mean: Tensor
    var: Tensor
    s: Tensor
    xhat: Tensor


def normalised(x: Tensor) -> Normalised:
    """x: (m, C)."""
    mean = x.sum(0) / len(x)
    var = ((x - mean) ** 2).sum(0) / len(x)
    s = 1 / (var + EPS).sqrt()
    return Normalised(mean, var, s, (x - mean) * s)


def random(*shape: int) -> Tensor:
    return 2 * torch.randn(shape, dtype=torch.float64) + 1


def parts_of(x: Tensor, cut: list[int]) -> list[Tensor]:
    return list(torch.split(x, cut))


def over_two_ranks(
    ranks_of: RanksOf, model: nn.Module, x: Tensor, dy: Tensor, cut: list[int] | None = None
) -> Step:
    """One step of the model, converted: the ranks' parts put together, parameter gradients added up."""
    batch = (parts_of(x, cut or CUT), parts_of(dy, cut or CUT))
    steps = [step for (step,) in ranks_of(2).run(steps_in_rank, model, [batch])]
    first, second = steps
    torch.testing.assert_close(first.buffers, second.buffers, rtol=0, atol=0)
    gradients = zip(first.parameter_gradients, second.parameter_gradients, strict=True)
    return Step(
        output=torch.cat([step.output for step in steps]),
        input_gradient=torch.cat([step.input_gradient for step in steps]),
        parameter_gradients=[a + b for a, b in gradients],
        buffers=first.buffers,
    )


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def assert_close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


def test_normalised_values_have_mean_0_and_variance_1_but_for_epsilon(ranks_of: RanksOf) -> None:
    """Section 3: Σx̂ = 0 and Σx̂²/m = 1 where ε is neglected; with it, Var/(Var + ε)."""
    x = random(7, 3)
    var = normalised(x).var

    xhat = over_two_ranks(ranks_of, nn.BatchNorm1d(3, eps=EPS, affine=False).double(), x, x).output

    assert_close(xhat.sum(0), torch.zeros_like(var))
    assert_close((xhat**2).mean(0), var / (var + EPS))


def test_standard_deviation_as_weight_and_mean_as_bias_give_the_identity(ranks_of: RanksOf) -> None:
    """Section 3: γ = √(Var + ε) and β = E restore the input."""
    x = random(7, 3)
    layer = nn.BatchNorm1d(3, eps=EPS).double()
    layer.weight.data, layer.bias.data = 1 / normalised(x).s, normalised(x).mean

    assert_close(over_two_ranks(ranks_of, layer, x, x).output, x)


def test_gradients_are_the_papers_six_equations(ranks_of: RanksOf) -> None:
    """Section 3: the chain rule through x̂, σ² and μ to x, γ and β, each equation as it stands there."""
    x, dy = random(7, 3), random(7, 3)
    layer = batch_norm(2, 3, eps=EPS).double()
    mean, var, s, xhat = normalised(x)
    m = len(x)
    d_xhat = dy * layer.weight.detach()
    d_var = (d_xhat * (x - mean) * (-1 / 2) * (var + EPS) ** (-3 / 2)).sum(0)
    d_mean = (d_xhat * -s).sum(0) + d_var * (-2 * (x - mean)).sum(0) / m

    step = over_two_ranks(ranks_of, layer, x, dy)

    assert_close(step.input_gradient, d_xhat * s + d_var * 2 * (x - mean) / m + d_mean / m)
    d_weight, d_bias = step.parameter_gradients
    assert_close(d_weight, (dy * xhat).sum(0))
    assert_close(d_bias, dy.sum(0))


def test_input_gradients_add_up_to_0_and_along_the_normalised_input_to_0_but_for_epsilon(
    ranks_of: RanksOf,
) -> None:
    """From section 3: dx = γs·(dy - Σdy/m - x̂·Σdy·x̂/m), Σx̂ = 0 and Σx̂² = m·Var·s² give Σdx = 0 and
    Σdx·x̂ = γs·(1 - Var·s²)·Σdy·x̂ = γεs³·Σdy·x̂.
    """
    x, dy = random(7, 3), random(7, 3)
    layer = batch_norm(2, 3, eps=EPS).double()
    _, _, s, xhat = normalised(x)

    dx = over_two_ranks(ranks_of, layer, x, dy).input_gradient

    assert_close(dx.sum(0), torch.zeros_like(s))
    assert_close((dx * xhat).sum(0), layer.weight.detach() * EPS * s**3 * (dy * xhat).sum(0))


def test_training_output_depends_on_samples_of_another_rank_and_evaluation_on_none(ranks_of: RanksOf) -> None:
    """Sections 3, 3.1 and 3.4: in training a sample is seen together with the others of the batch."""
    x = random(7, 3)
    changed = x.clone()
    changed[-1] += 1  # the sample of the second rank
    of_the_first_rank_alone = torch.cat([random(6, 3), torch.zeros(1, 3, dtype=torch.float64)])
    layer = batch_norm(2, 3).double()

    def steps() -> list[Step]:
        return [over_two_ranks(ranks_of, layer, batch, of_the_first_rank_alone) for batch in (x, changed)]

    before, after = steps()
    assert ((before.output - after.output)[:-1].abs() > 1e-3).all()
    assert (before.input_gradient[-1].abs() > 1e-3).all()

    layer.eval()
    before, after = steps()
    assert torch.equal(before.output[:-1], after.output[:-1])
    assert not torch.equal(before.output[-1], after.output[-1])
    assert (before.input_gradient[-1] == 0).all()


def test_inference_uses_the_mean_of_the_means_and_m_over_m_minus_1_of_the_mean_variance(
    ranks_of: RanksOf,
) -> None:
    """Algorithm 2, step 10: E = E[μ] and Var = m/(m-1)·E[σ²] over several batches, each of m in all ranks."""
    batches = [random(7, 3) for _ in range(3)]
    parts = [parts_of(x, cut) for x, cut in zip(batches, ([6, 1], [2, 5], [0, 7]), strict=True)]
    mean = torch.stack([normalised(x).mean for x in batches]).mean(0)
    mean_var = torch.stack([normalised(x).var for x in batches]).mean(0)
    layer = nn.BatchNorm1d(3, momentum=None).double()

    for steps in ranks_of(2).run(steps_in_rank, layer, [(part, part) for part in parts]):
        assert_close(steps[-1].buffers["running_mean"], mean)
        assert_close(steps[-1].buffers["running_var"], 7 / 6 * mean_var)


def rows(x: Tensor) -> Tensor:
    """(N, C, p, q) as (N·p·q, C)."""
    return x.movedim(1, -1).flatten(0, -2)


def test_feature_map_is_normalised_as_a_batch_of_m_p_q_values(ranks_of: RanksOf) -> None:
    """Section 3.2: all places of a feature map are normalised alike, so m' = m·p·q."""
    x, dy = random(5, 3, 2, 4), random(5, 3, 2, 4)
    layer = batch_norm(4, 3, momentum=1.0).double()
    per_value = nn.BatchNorm1d(3, momentum=1.0).double()
    per_value.load_state_dict(layer.state_dict())

    maps = over_two_ranks(ranks_of, layer, x, dy, cut=[1, 4])
    values = over_two_ranks(ranks_of, per_value, rows(x), rows(dy), cut=[8, 32])

    assert_close(rows(maps.output), values.output)
    assert_close(rows(maps.input_gradient), values.input_gradient)
    assert_close(maps.buffers["running_var"], 40 / 39 * normalised(rows(x)).var)
    assert_close(values.buffers["running_var"], 40 / 39 * normalised(rows(x)).var)


def test_feature_maps_of_different_sizes_count_by_their_values(ranks_of: RanksOf) -> None:
    """Section 3.2: m' is the number of values in all, here 2·3·3 of one rank and 1·2·7 of the other."""
    parts = [random(2, 3, 3, 3), random(1, 3, 2, 7)]
    x = torch.cat([rows(part) for part in parts])

    for (step,) in ranks_of(2).run(steps_in_rank, nn.BatchNorm2d(3, momentum=1.0).double(), [(parts, parts)]):
        assert_close(step.buffers["running_mean"], normalised(x).mean)
        assert_close(step.buffers["running_var"], 32 / 31 * normalised(x).var)


def test_bias_before_it_is_cancelled_and_gets_no_gradient(ranks_of: RanksOf) -> None:
    """Section 3.2: subtracting the mean takes off any b of Wu + b, whose part β has. Section 2: so the
    gradient must say that b changes nothing.
    """
    x, dy = random(7, 4), random(7, 3)
    linear = nn.Linear(4, 3)
    model = nn.Sequential(linear, batch_norm(2, 3, eps=EPS)).double()
    nn.init.constant_(linear.bias, 3.0)
    with_bias = over_two_ranks(ranks_of, model, x, dy)
    nn.init.zeros_(linear.bias)

    without = over_two_ranks(ranks_of, model, x, dy)

    assert_close(with_bias.output, without.output)
    assert_close(with_bias.input_gradient, without.input_gradient)
    _, d_bias, *_ = with_bias.parameter_gradients
    assert_close(d_bias, torch.zeros_like(d_bias))


@pytest.mark.parametrize("a", [0.01, 300.0])
def test_scale_of_the_weights_before_it_matters_to_nothing_but_their_own_gradient(
    ranks_of: RanksOf, a: float
) -> None:
    """Section 3.3: BN((aW)u) = BN(Wu), their derivatives by u are equal, and d/d(aW) = (1/a)·d/dW.

    ε is no part of the paper's claim. With a²ε in place of ε it is exact.
    """
    x, dy = random(7, 4), random(7, 3)
    linear = nn.Linear(4, 3, bias=False)
    layer = batch_norm(2, 3, eps=EPS)
    model = nn.Sequential(linear, layer).double()
    unscaled = over_two_ranks(ranks_of, model, x, dy)
    linear.weight.data *= a
    layer.eps *= a**2

    scaled = over_two_ranks(ranks_of, model, x, dy)

    assert_close(scaled.output, unscaled.output)
    assert_close(scaled.input_gradient, unscaled.input_gradient)
    d_linear, *d_affine = scaled.parameter_gradients
    assert_close(a * d_linear, unscaled.parameter_gradients[0])
    for d_scaled, d_unscaled in zip(d_affine, unscaled.parameter_gradients[1:], strict=True):
        assert_close(d_scaled, d_unscaled)


def train_evaluate_and_revert(
    rank: int, model: nn.Sequential, parts: list[Tensor]
) -> tuple[nn.Sequential, Tensor]:
    convert_sync_batchnorm(model)
    model(parts[rank])
    with torch.no_grad():
        output = model.eval()(parts[rank])
    revert_sync_batchnorm(model)
    return model, output


def test_trained_layer_folds_into_the_convolution_before_it(ranks_of: RanksOf) -> None:
    """Algorithm 2, step 11: in inference it is y = γ/√(Var + ε)·x + (β - γE/√(Var + ε)), a linear map."""
    parts = [random(2, 2, 5, 5), random(1, 2, 5, 5)]
    model = nn.Sequential(nn.Conv2d(2, 3, 3), batch_norm(4, 3, momentum=0.7, eps=EPS)).double()

    (reverted, output), (_, other_output) = ranks_of(2).run(train_evaluate_and_revert, model, parts)

    convolution, layer = cast(tuple[nn.Conv2d, nn.BatchNorm2d], tuple(reverted))
    assert type(layer) is nn.BatchNorm2d
    folded = fuse_conv_bn_eval(convolution, layer)
    assert_close(folded(torch.cat(parts)), torch.cat([output, other_output]))
