"""The collectives: how many, of what, and that every rank reaches them."""

from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from sync_bn import SyncBatchNorm
from tests.sync_bn.conftest import RanksOf

Call = tuple[int, torch.dtype]


def collectives_of_one_step(
    rank: int, shapes: list[tuple[int, ...]], dtypes: list[torch.dtype]
) -> list[list[Call]]:
    """(number of elements, dtype) of the all-reduces of a forward, and those of its backward."""
    calls: list[Call] = []
    all_reduce = dist.all_reduce

    def recording(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
        calls.append((tensor.numel(), tensor.dtype))
        return all_reduce(tensor, *args, **kwargs)

    def forbidden(*_: Any, **__: Any) -> None:
        raise AssertionError("no collective but all_reduce is allowed")

    others = ("all_gather", "all_gather_into_tensor", "all_gather_object", "broadcast", "barrier", "reduce")
    with patch.multiple(dist, **dict.fromkeys(others, forbidden) | {"all_reduce": recording}):
        x = torch.randn(shapes[rank], dtype=dtypes[rank], requires_grad=True)
        y = SyncBatchNorm(x.shape[1])(x)
        forward = calls.copy()
        torch.autograd.backward(y.sum())
    return [forward, calls[len(forward) :]]


@pytest.mark.parametrize("world_size", [2, 3])
def test_one_all_reduce_each_way_of_a_size_that_does_not_depend_on_ranks_or_input(
    ranks_of: RanksOf, world_size: int
) -> None:
    shapes = [(0, 5, 4, 4), (3, 5, 2, 2), (1, 5)][-world_size:]
    dtypes = [torch.float16, torch.float32, torch.bfloat16][:world_size]

    for forward, backward in ranks_of(world_size).run(collectives_of_one_step, shapes, dtypes):
        assert forward == [(11, torch.float64)]
        assert backward == [(10, torch.float64)]


def gradients_where_only_rank_0_needs_its_inputs(rank: int) -> Tensor | None:
    torch.manual_seed(rank)
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=rank == 0)
    layer = SyncBatchNorm(3, dtype=torch.float64)
    torch.autograd.backward((layer(x) ** 3).sum())
    return x.grad


def test_ranks_that_disagree_about_input_gradients_do_not_hang(ranks_of: RanksOf) -> None:
    parts = []
    for rank in range(2):
        torch.manual_seed(rank)
        parts.append(torch.randn(4, 3, dtype=torch.float64))
    x = torch.cat(parts).requires_grad_()
    torch.autograd.backward((torch.nn.BatchNorm1d(3, dtype=torch.float64)(x) ** 3).sum())
    assert x.grad is not None

    first, second = ranks_of(2).run(gradients_where_only_rank_0_needs_its_inputs)

    torch.testing.assert_close(first, x.grad[:4])
    assert second is None


def second_derivative(rank: int) -> str:
    x = torch.randn(4, 3, requires_grad=True)
    (dx,) = torch.autograd.grad((SyncBatchNorm(3)(x) ** 3).sum(), x, create_graph=True)
    try:
        torch.autograd.backward(dx.sum())
    except RuntimeError as error:
        return str(error)
    return f"no error on rank {rank}"


def test_second_derivatives_are_refused(ranks_of: RanksOf) -> None:
    for message in ranks_of(2).run(second_derivative):
        assert "once_differentiable" in message


def step_that_reads_no_value(rank: int) -> bool:
    with (
        patch.object(Tensor, "item", side_effect=AssertionError),
        patch.object(Tensor, "__bool__", side_effect=AssertionError),
    ):
        x = torch.randn(4 + rank, 3, requires_grad=True)
        torch.autograd.backward(SyncBatchNorm(3, momentum=None)(x).sum())
    return True


def test_no_value_is_read_from_the_device(ranks_of: RanksOf) -> None:
    assert ranks_of(2).run(step_that_reads_no_value) == [True, True]
