from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from sync_bn import global_mean
from testing.ranks import RankError
from tests.sync_bn.conftest import RanksOf

Sizes = Sequence[int]


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(4, 3).double()


def data(samples: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(samples)
    x = torch.randn(samples, 4, dtype=torch.float64, generator=generator)
    return x, torch.rand(samples, 3, generator=generator) < 0.4


def masked_mean(output: Tensor, mask: Tensor) -> Tensor:
    return global_mean((output.square() * mask).sum(), mask.sum())


def ratio_of_each_class(output: Tensor, mask: Tensor) -> Tensor:
    """Not linear in the ratios, of which both sums depend on the network."""
    found = output.sigmoid()
    return (1 - global_mean((found * mask).sum(0), (found + mask).sum(0))).pow(3).mean()


def broadcast(output: Tensor, mask: Tensor) -> Tensor:
    return global_mean(output.square().sum(0), mask.sum()).sum() + global_mean(output.sum(), len(mask))


LOSSES = [masked_mean, ratio_of_each_class, broadcast]


def losses_and_gradients(rank: int, sizes: Sizes) -> list[tuple[Tensor, list[Tensor]]]:
    x, mask = (torch.split(part, list(sizes))[rank] for part in data(sum(sizes)))
    results = []
    for loss_of in LOSSES:
        model = DistributedDataParallel(network())
        loss = loss_of(model(x), mask)
        torch.autograd.backward(loss)
        results.append((loss.detach(), [p.grad for p in model.parameters() if p.grad is not None]))
    return results


@pytest.mark.parametrize("sizes", [(3, 3), (5, 1), (6, 0), (2, 0, 4)], ids=str)
def test_value_and_averaged_gradient_are_those_of_one_process(ranks_of: RanksOf, sizes: Sizes) -> None:
    found = ranks_of(len(sizes)).run(losses_and_gradients, sizes)

    x, mask = data(sum(sizes))
    for index, loss_of in enumerate(LOSSES):
        model = network()
        expected = loss_of(model(x), mask)  # without a process group
        torch.autograd.backward(expected)
        for rank in range(len(sizes)):
            loss, gradients = found[rank][index]
            torch.testing.assert_close(loss, expected.detach(), rtol=1e-12, atol=0)
            torch.testing.assert_close(
                gradients, [p.grad for p in model.parameters()], rtol=1e-10, atol=1e-12
            )


def dtypes(rank: int) -> list[Tensor]:
    total = torch.tensor(60000.0 * rank, dtype=torch.float16)
    return [
        global_mean(total, 100000),
        global_mean(total, torch.tensor(True)),
        global_mean(total.float(), 0.0),
    ]


def test_sums_are_float64_and_the_result_has_the_dtype_of_the_total(ranks_of: RanksOf) -> None:
    for half, of_bool, of_nothing in ranks_of(2).run(dtypes):
        assert half.dtype == of_bool.dtype == torch.float16
        assert half == torch.tensor(0.3, dtype=torch.float16)
        assert of_bool == 30000
        assert not of_nothing.isfinite()


def second_derivative(_rank: int, *, through_weight: bool) -> Tensor:
    x = torch.tensor(2.0, requires_grad=True)
    loss = global_mean(x**3, x if through_weight else 1.0)
    (first,) = torch.autograd.grad(loss, x, create_graph=True)
    (second,) = torch.autograd.grad(first, x)
    return second


def test_second_derivatives_are_right_or_refused(ranks_of: RanksOf) -> None:
    # d²(Σx³ / 2)/dx² on one of two ranks, times 2, as gradients are averaged.
    assert ranks_of(2).run(second_derivative, through_weight=False) == [12.0, 12.0]
    with pytest.raises(RankError, match="no second derivatives through its weight"):
        ranks_of(2).run(second_derivative, through_weight=True)


def test_a_total_of_integers_is_refused() -> None:
    with pytest.raises(ValueError, match=r"total has dtype torch.int64; expected a floating-point tensor"):
        global_mean(torch.tensor(1), 2)


def of_other_shapes(rank: int) -> None:
    global_mean(torch.zeros(2 + rank), 1.0)


def test_ranks_that_call_it_differently_are_told(ranks_of: RanksOf) -> None:
    ranks = ranks_of(4)  # a number of ranks whose first calls these are
    with pytest.raises(RankError, match=r"DesynchronizedError: (.|\n)*global_mean of 2 elements"):
        ranks.run(of_other_shapes)
