"""Gradients of shards are added in one order, whichever worker has which shard and whenever they arrive."""

from __future__ import annotations

import math
from collections.abc import Sequence
from unittest.mock import patch

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from sync_bn import _large_sums
from tests.training.bits.runs import digest
from tests.training.worlds import Worlds
from training.bits import tree
from training.bits.exchange import Exchange
from training.bits.gradients import ShardGradients
from training.errors import StepError


def sums_of(
    size: int, shards: int, dtype: torch.dtype = torch.float64
) -> tuple[ShardGradients, nn.Parameter]:
    parameter = nn.Parameter(torch.ones(size, dtype=dtype))
    return ShardGradients({"weight": parameter}, Exchange(shards, 0, 1)), parameter


def add(gradients: ShardGradients, parameter: nn.Parameter, index: int, gradient: Tensor) -> None:
    """Runs a backward pass of a shard, given by its index, in which the parameter has this gradient."""
    leaf = gradients.of_shard[index][parameter]
    leaf.backward(gradient.to(leaf.dtype).clone())  # type: ignore[no-untyped-call]


def total(rows: Tensor, order: Sequence[int]) -> Tensor:
    """The sum of the rows of shards, which arrive in an order."""
    gradients, parameter = sums_of(rows.shape[1], len(rows), rows.dtype)
    for index in order:
        add(gradients, parameter, index, rows[index])
    gradients.finish()
    assert parameter.grad is not None
    return parameter.grad


ANY = st.floats(allow_nan=False, allow_infinity=False, width=32)


@given(data=st.data(), shards=st.integers(1, 9))
def test_gradients_may_arrive_in_any_order(data: st.DataObject, shards: int) -> None:
    entries = st.lists(ANY, min_size=4, max_size=4)
    rows = torch.tensor(data.draw(st.lists(entries, min_size=shards, max_size=shards)), dtype=torch.float64)

    found, other = (total(rows, data.draw(st.permutations(range(shards)))) for _ in range(2))

    assert digest(found) == digest(other)
    depth = (shards - 1).bit_length()  # of the tree: so often is a number rounded
    for column, value in enumerate(found.tolist()):
        summands = rows[:, column].tolist()
        bound = depth * 2.0**-52 * math.fsum(map(abs, summands))
        assert abs(value - math.fsum(summands)) <= bound


@given(data=st.data(), shards=st.integers(1, 40))
def test_the_nodes_of_any_workers_make_the_same_tree(data: st.DataObject, shards: int) -> None:
    """Added are texts, in which one sees the order."""
    starts = sorted(data.draw(st.sets(st.integers(1, shards - 1)))) if shards > 1 else []
    dealing = zip([0, *starts], [*starts, shards], strict=True)

    class Text(str):
        __slots__ = ()

        def add_(self, other: str) -> Text:
            return Text(f"({self} {other})")

    def sum_of(parts: Sequence[range]) -> str:
        nodes: dict[tree.Node, Text] = {}
        for part in parts:
            own: dict[tree.Node, Text] = {}
            for shard in data.draw(st.permutations(part)):
                tree.add(own, (shard, 1), Text(shard))  # type: ignore[arg-type]
            assert sorted(own) == tree.whole_nodes(part)
            for node, text in own.items():
                tree.add(nodes, node, text)  # type: ignore[arg-type]
        return str(tree.root(nodes))  # type: ignore[arg-type]

    assert sum_of([range(*ends) for ends in dealing]) == sum_of([range(shards)])


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ([math.inf, 1.0, -3.0], math.inf),
        ([1.0, -math.inf, 1e30], -math.inf),
        ([math.inf, 1.0, -math.inf], math.nan),
        ([1.0, math.nan, 1.0], math.nan),
    ],
)
def test_what_is_not_finite_stays_so(entries: list[float], expected: float) -> None:
    rows = torch.tensor([[entry, 1.0] for entry in entries], dtype=torch.float64)
    found = [total(rows, order) for order in ([0, 1, 2], [2, 1, 0], [1, 2, 0])]

    assert found[0].tolist() == pytest.approx([expected, 3.0], nan_ok=True)
    assert len(set(map(digest, found))) == 1


def test_parameters_have_their_own_dtype_and_those_that_are_not_reached_keep_what_they_have() -> None:
    half = nn.Parameter(torch.ones(1, dtype=torch.bfloat16))
    double = nn.Parameter(torch.ones(2, 3, dtype=torch.float64))
    unused, kept = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    kept.grad = torch.ones(1)
    parameters = {"half": half, "double": double, "unused": unused, "kept": kept}
    gradients = ShardGradients(parameters, Exchange(5, 0, 1))
    third = torch.full((2, 3), 1 / 3, dtype=torch.float64)

    for _ in range(2):  # of two micro-batches
        for index in range(5):
            add(gradients, half, index, torch.tensor([1.0 if index == 0 else 2.0**-9]))
        add(gradients, double, 1, third)
        gradients.finish()

    assert unused.grad is None
    assert kept.grad.tolist() == [1.0]
    assert half.grad is not None
    assert half.grad.dtype == torch.bfloat16
    assert half.grad.tolist() == [2 * (1 + 2.0**-7)]  # in bfloat16 alone, 1 + 2^-9 is 1
    assert double.grad is not None
    torch.testing.assert_close(double.grad, 2 * third, rtol=1e-15, atol=0)


def test_it_is_of_the_parameters_that_it_was_made_with() -> None:
    gradients, parameter = sums_of(1, 1)

    assert gradients.is_of({"weight": parameter})
    assert not gradients.is_of({"weight": nn.Parameter(torch.ones(1))})
    assert not gradients.is_of({"weight": parameter, "more": nn.Parameter(torch.ones(1))})


def test_a_gradient_of_the_models_own_parameter_is_refused_until_it_is_detached() -> None:
    gradients, parameter = sums_of(1, 1)

    with pytest.raises(StepError, match=r"weight got a gradient outside of its shard's pass.*use_reentrant"):
        parameter.sum().backward()  # type: ignore[no-untyped-call]

    gradients.detach()
    parameter.sum().backward()  # type: ignore[no-untyped-call]


def test_sparse_gradients_are_refused() -> None:
    weight = nn.Parameter(torch.ones(3, 2))
    gradients = ShardGradients({"weight": weight}, Exchange(1, 0, 1))
    output = nn.functional.embedding(torch.tensor([1]), gradients.of_shard[0][weight], sparse=True)

    with pytest.raises(StepError, match="sparse=False"):
        output.sum().backward()  # type: ignore[no-untyped-call]


def _dealt_in_memory(rank: int, world_size: int, shards: int) -> list[str]:
    """The same by ranks that share memory for a few numbers at once."""
    with patch.object(_large_sums, "_PIECE_BYTES", 32):
        exchange = Exchange(shards, rank, world_size)
        exchange.share_memory("cpu")
        assert exchange.memory is not None
        return _dealt(rank, world_size, shards, exchange)


def _dealt(rank: int, world_size: int, shards: int, exchange: Exchange | None = None) -> list[str]:
    generator = torch.Generator().manual_seed(1)
    shape = 2, shards, 2, 3, 1, 2
    scales = 10.0 ** torch.randint(-6, 6, shape, generator=generator)
    rows = (scales * torch.randn(shape, generator=generator)).float()
    rows[1, 2, 0, 0, 0] = torch.tensor([math.nan, math.inf])
    weight = nn.Parameter(torch.ones(2, 3, 1, 2).to(memory_format=torch.channels_last))
    double, unused = nn.Parameter(torch.ones(7, dtype=torch.float64)), nn.Parameter(torch.ones(2))
    exchange = exchange or Exchange(shards, rank, world_size)
    gradients = ShardGradients({"weight": weight, "unused": unused, "double": double}, exchange)
    for each in rows:  # of two micro-batches
        for index, shard in enumerate(exchange.own):
            add(gradients, weight, index, each[shard])
            if shard != 2:  # a shard that does not reach it
                add(gradients, double, index, each[shard].flatten()[:7].double())
        gradients.finish()
    assert unused.grad is None
    assert weight.grad is not None
    assert weight.grad.stride() == weight.stride()
    return [digest(weight.grad), digest(double.grad)]


@pytest.mark.parametrize("shards", [4, 5, 7])
def test_any_dealing_gives_the_same_bits(worlds: Worlds, shards: int) -> None:
    expected = worlds.run(1, _dealt, 1, shards)[0]

    for world_size in (2, 3, 4):
        assert worlds.run(world_size, _dealt, world_size, shards) == [expected] * world_size
        assert worlds.run(world_size, _dealt_in_memory, world_size, shards) == [expected] * world_size


def test_shards_see_the_gradient_of_the_model_and_what_all_of_them_do_is_done_to_it() -> None:
    gradients, parameter = sums_of(2, 2)
    leaves = [of_shard[parameter] for of_shard in gradients.of_shard]
    parameter.grad = torch.ones(2, dtype=torch.float64)
    parameter.requires_grad_(False)

    gradients.show()
    assert all(leaf.grad is parameter.grad and not leaf.requires_grad for leaf in leaves)
    gradients.hide()
    assert parameter.grad is not None
    assert all(leaf.grad is None for leaf in leaves)

    gradients.show()
    for leaf in leaves:
        leaf.requires_grad_()
        leaf.grad = None
    gradients.hide()

    gradients.check()
    assert parameter.requires_grad
    assert parameter.grad is None


@pytest.mark.parametrize("shards", [(0,), (1,), (0, 1)])
def test_a_gradient_that_a_shard_has_changed_is_refused(shards: tuple[int, ...]) -> None:
    gradients, parameter = sums_of(2, 2)
    parameter.grad = torch.ones(2, dtype=torch.float64)

    gradients.show()
    for shard in shards:
        gradient = gradients.of_shard[shard][parameter].grad
        assert gradient is not None
        gradient.mul_(0.5)
    gradients.hide()

    with pytest.raises(StepError, match=r"changes the gradient of weight by itself.*self\.clip_gradients"):
        gradients.check()
