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
