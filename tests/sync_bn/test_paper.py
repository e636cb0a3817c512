"""What Ioffe & Szegedy, "Batch Normalization", 2015, state of their layer, where two ranks share the batch.

m is the number of values per channel of the whole batch, x̂ the normalised input, s = 1/√(Var + ε). Everything
is float64, and one rank has a single sample: what two ranks would each do for themselves holds none of it.
"""

from typing import NamedTuple, cast

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from sync_bn import SyncBatchNorm, convert_sync_batchnorm, revert_sync_batchnorm
from tests.sync_bn.conftest import RanksOf
from tests.sync_bn.one_process import batch_norm, steps_in_rank

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


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def assert_close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


def test_gradients_are_the_papers_six_equations(ranks_of: RanksOf) -> None:
    """Section 3: the chain rule through x̂, σ² and μ to x, γ and β, each equation as it stands there."""
    x, dy = random(7, 3), random(7, 3)
    layer = batch_norm(2, 3, eps=EPS).double()
    mean, var, s, xhat = normalised(x)
    m = len(x)
    d_xhat = dy * layer.weight.detach()
    d_var = (d_xhat * (x - mean) * (-1 / 2) * (var + EPS) ** (-3 / 2)).sum(0)
    d_mean = (d_xhat * -s).sum(0) + d_var * (-2 * (x - mean)).sum(0) / m

    batch = (parts_of(x, CUT), parts_of(dy, CUT))
    steps = [step for (step,) in ranks_of(2).run(steps_in_rank, layer, [batch])]

    dx = torch.cat([step.input_gradient for step in steps])
    assert_close(dx, d_xhat * s + d_var * 2 * (x - mean) / m + d_mean / m)
    d_weight, d_bias = (
        sum(of_ranks) for of_ranks in zip(*(step.parameter_gradients for step in steps), strict=True)
    )
    assert_close(d_weight, (dy * xhat).sum(0))
    assert_close(d_bias, dy.sum(0))


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


def test_feature_maps_of_different_sizes_count_by_their_values(ranks_of: RanksOf) -> None:
    """Section 3.2: m' is the number of values in all, here 2·3·3 of one rank and 1·2·7 of the other."""
    parts = [random(2, 3, 3, 3), random(1, 3, 2, 7)]
    x = torch.cat([rows(part) for part in parts])

    for (step,) in ranks_of(2).run(steps_in_rank, nn.BatchNorm2d(3, momentum=1.0).double(), [(parts, parts)]):
        assert_close(step.buffers["running_mean"], normalised(x).mean)
        assert_close(step.buffers["running_var"], 32 / 31 * normalised(x).var)


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


CUTS = [[7], [6, 1], [3, 0, 4]]
"""The same batch of 7 on 1, 2 and 3 ranks."""


class Through(NamedTuple):
    """What BN(Wu + b) gives for a whole batch, and its gradients."""

    output: Tensor
    d_input: Tensor
    d_weights: Tensor
    d_bias: Tensor


def through_in_rank(
    rank: int, weights: Tensor, bias: Tensor, inputs: list[Tensor], dys: list[Tensor], eps: float
) -> Through:
    """weights: (C, D), bias: (C,), inputs: (n, D) of each rank, dys: (n, C) of each rank."""
    layer = SyncBatchNorm(len(weights), eps=eps).double()
    leaves = [each.clone().requires_grad_() for each in (inputs[rank], weights, bias)]
    y = layer(nn.functional.linear(*leaves))
    return Through(y.detach(), *torch.autograd.grad(y, leaves, dys[rank]))


class Case(NamedTuple):
    cut: list[int]
    weights: Tensor
    bias: Tensor
    inputs: Tensor
    dys: Tensor

    def through(
        self, ranks_of: RanksOf, *, scale: float = 1.0, bias: float = 0.0, eps: float = EPS
    ) -> Through:
        """BN((scale·W)u + bias·b), of all ranks together."""
        inputs, dys = parts_of(self.inputs, self.cut), parts_of(self.dys, self.cut)
        of_ranks = ranks_of(len(self.cut)).run(
            through_in_rank, scale * self.weights, bias * self.bias, inputs, dys, eps
        )
        return Through(
            output=torch.cat([each.output for each in of_ranks]),
            d_input=torch.cat([each.d_input for each in of_ranks]),
            d_weights=torch.stack([each.d_weights for each in of_ranks]).sum(0),
            d_bias=torch.stack([each.d_bias for each in of_ranks]).sum(0),
        )


@pytest.fixture(params=CUTS, ids=lambda cut: f"{len(cut)} ranks")
def case(request: pytest.FixtureRequest) -> Case:
    cut: list[int] = request.param
    return Case(cut, random(4, 3), random(4), random(sum(cut), 3), random(sum(cut), 4))


@pytest.mark.parametrize("scale", [1e-2, 3.0, 1e2])
def test_the_scale_of_the_weights_changes_no_output_and_no_gradient_of_the_input(
    ranks_of: RanksOf, case: Case, scale: float
) -> None:
    """Section 3.3: BN((aW)u) = BN(Wu), ∂BN((aW)u)/∂u = ∂BN(Wu)/∂u, ∂BN((aW)u)/∂(aW) = 1/a·∂BN(Wu)/∂W.

    With ε they hold if it scales as the variance does.
    """
    plain, scaled = case.through(ranks_of), case.through(ranks_of, scale=scale, eps=EPS * scale**2)

    assert_close(scaled.output, plain.output)
    assert_close(scaled.d_input, plain.d_input)
    assert_close(scaled.d_weights * scale, plain.d_weights)


def test_a_bias_before_the_layer_is_cancelled_and_has_no_gradient(ranks_of: RanksOf, case: Case) -> None:
    """Section 3.2: Wu + b may be replaced by Wu, for β has the role of b."""
    plain, shifted = case.through(ranks_of), case.through(ranks_of, bias=1.0)

    assert_close(shifted.output, plain.output)
    assert_close(shifted.d_weights, plain.d_weights)
    assert_close(shifted.d_bias, torch.zeros_like(shifted.d_bias))


def test_the_variance_of_inference_is_unbiased_by_the_count_of_all_ranks(
    ranks_of: RanksOf, case: Case
) -> None:
    """Section 3.1: Var[x] = m/(m-1)·E[σ²]: m is 7 on any number of ranks, and not a rank's own count."""
    parts = parts_of(case.inputs, case.cut)
    layer = nn.BatchNorm1d(3, momentum=1.0).double()

    for (step,) in ranks_of(len(case.cut)).run(steps_in_rank, layer, [(parts, parts)]):
        assert_close(step.buffers["running_var"], 7 / 6 * normalised(case.inputs).var)


def test_gamma_as_the_deviation_and_beta_as_the_mean_give_the_input_back(
    ranks_of: RanksOf, case: Case
) -> None:
    """Section 3: γ = √Var[x] and β = E[x] "recover the original activations"."""
    x = case.inputs
    layer = nn.BatchNorm1d(3, eps=EPS).double()
    with torch.no_grad():
        layer.weight.copy_(1 / normalised(x).s)
        layer.bias.copy_(normalised(x).mean)

    parts = parts_of(x, case.cut)
    steps = [step for (step,) in ranks_of(len(case.cut)).run(steps_in_rank, layer, [(parts, parts)])]

    assert_close(torch.cat([step.output for step in steps]), x)
