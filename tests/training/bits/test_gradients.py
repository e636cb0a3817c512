"""Gradients of shards are added exactly, in any order."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.training.bits.runs import digest
from tests.training.worlds import Worlds
from training.bits.exchange import Exchange
from training.bits.gradients import ShardGradients
from training.errors import StepError


def sums_of(
    size: int, shards: int, dtype: torch.dtype = torch.float64
) -> tuple[ShardGradients, nn.Parameter]:
    parameter = nn.Parameter(torch.ones(size, dtype=dtype))
    return ShardGradients({"weight": parameter}, Exchange(shards, 0, 1), shards), parameter


def add(gradients: ShardGradients, parameter: nn.Parameter, index: int, gradient: Tensor) -> None:
    """Runs a backward pass of a shard, given by its index, in which the parameter has this gradient."""
    leaf = gradients.of_shard[index][parameter]
    leaf.backward(gradient.to(leaf.dtype))  # type: ignore[no-untyped-call]


def total(gradients: ShardGradients, parameter: nn.Parameter, rows: Tensor, order: Sequence[int]) -> Tensor:
    for index in order:
        add(gradients, parameter, index, rows[index])
    gradients.finish()
    assert parameter.grad is not None
    return parameter.grad


SHARDS = st.integers(1, 9)
FLOATS = st.floats(-(2.0**14), 2.0**14)


@given(data=st.data(), shards=SHARDS)
def test_sums_are_those_of_float64_within_the_bound_in_any_order(data: st.DataObject, shards: int) -> None:
    entries = st.lists(FLOATS, min_size=4, max_size=4)
    rows = torch.tensor(data.draw(st.lists(entries, min_size=shards, max_size=shards)), dtype=torch.float64)

    found, other = (
        total(*sums_of(4, shards), rows, data.draw(st.permutations(range(shards)))) for _ in range(2)
    )

    assert digest(found) == digest(other)
    s = max(shards - 1, 1).bit_length()
    bound = shards * 2.0 ** (s - 49)  # of the module's docstring, with m = 1 in the first step
    for column, value in enumerate(found.tolist()):
        exact = math.fsum(rows[:, column].tolist())
        assert abs(value - exact) <= bound + 2.0**-52 * abs(exact)  # the result is rounded to float64


ANY = st.floats(allow_nan=False, allow_infinity=False, width=32)


@given(data=st.data(), shards=SHARDS)
def test_entries_of_any_size_are_added_in_any_order_with_the_bound_of_their_grid(
    data: st.DataObject, shards: int
) -> None:
    rows = torch.tensor(data.draw(st.lists(ANY, min_size=shards, max_size=shards)), dtype=torch.float64)[
        :, None
    ]
    one, other = (
        total(*sums_of(1, shards), rows, data.draw(st.permutations(range(shards)))) for _ in range(2)
    )

    assert digest(one) == digest(other)
    exact, largest = math.fsum(rows[:, 0].tolist()), float(rows.abs().max())
    # Its grid has entries up to 2^32 smaller than the largest without a coarser one.
    assert float(one) == pytest.approx(
        exact, rel=1e-15, abs=max(2.0**-40, largest * 2.0**-8 * 2.0**-32) * shards
    )


def test_an_entry_above_the_grid_goes_to_a_coarser_one_and_the_others_stay() -> None:
    gradients, parameter = sums_of(3, 3)
    rows = torch.tensor([[1e30, 1e-3, 1.0], [1e-3, -1e-3, 2e9], [-1e30, 2e-3, 1e-9]], dtype=torch.float64)

    found = total(gradients, parameter, rows, [2, 0, 1])

    assert found.tolist() == pytest.approx([1e-3, 2e-3, 2e9 + 1], rel=1e-9)
    assert gradients.exponents == {"weight": math.frexp(2e9 + 1)[1]}


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
    digests = set()
    for order in ([0, 1, 2], [2, 1, 0], [1, 2, 0]):
        gradients, parameter = sums_of(2, 3)
        found = total(gradients, parameter, rows, order)
        digests.add(digest(found))

        assert found.tolist() == pytest.approx([expected, 3.0], nan_ok=True)
        assert gradients.exponents == {"weight": 0}  # as it was
        assert total(gradients, parameter, torch.ones(3, 2), [0, 1, 2]).tolist() == [3.0, 3.0]
    assert len(digests) == 1


def test_parameters_have_their_own_dtype_and_those_that_are_not_reached_have_no_gradient() -> None:
    single, double = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2, 3, dtype=torch.float64))
    unused = nn.Parameter(torch.ones(1))
    unused.grad = torch.ones(1)
    gradients = ShardGradients(
        {"single": single, "double": double, "unused": unused}, Exchange(2, 0, 1), summands=2
    )
    third = torch.full((2, 3), 1 / 3, dtype=torch.float64)

    pending = [gradients.is_pending]
    for index in range(2):
        add(gradients, single, index, torch.tensor([0.1, 0.2]))
    add(gradients, double, 1, third)
    pending.append(gradients.is_pending)
    gradients.finish()

    assert [*pending, gradients.is_pending] == [False, True, False]
    assert [each.grad is None for each in (single, double, unused)] == [False, False, True]
    assert single.grad is not None
    assert single.grad.dtype == torch.float32
    assert single.grad.tolist() == torch.tensor([0.2, 0.4]).tolist()
    assert double.grad is not None
    torch.testing.assert_close(double.grad, third, rtol=1e-13, atol=0)
    gradients.finish()
    assert single.grad is None


def test_the_grid_follows_the_last_sum_and_is_saved() -> None:
    gradients, parameter = sums_of(1, 2)
    tiny = torch.full((2, 1), 3e-20, dtype=torch.float64)

    first = float(total(gradients, parameter, tiny, [0, 1]))
    total(gradients, parameter, 1e-10 * torch.ones(2, 1), [0, 1])
    assert first == 0.0  # below the grid of the first step
    state = gradients.state_dict()
    assert state == {"exponents": {"weight": math.frexp(2e-10)[1]}}
    loaded, other = sums_of(1, 2)
    loaded.load_state_dict(state)

    found = [float(total(*pair, tiny, [1, 0])) for pair in ((gradients, parameter), (loaded, other))]

    assert found[0] == found[1] == pytest.approx(6e-20, rel=1e-4)


def test_the_exponents_of_parameters_that_are_frozen_now_are_kept() -> None:
    gradients, parameter = sums_of(1, 1)
    gradients.load_state_dict({"exponents": {"frozen": 7, "weight": -3}})

    assert gradients.state_dict() == {"exponents": {"weight": -3, "frozen": 7}}
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
    gradients = ShardGradients({"weight": weight}, Exchange(1, 0, 1), 1)
    output = nn.functional.embedding(torch.tensor([1]), gradients.of_shard[0][weight], sparse=True)

    with pytest.raises(StepError, match="sparse=False"):
        output.sum().backward()  # type: ignore[no-untyped-call]


WIDE = 5


def _dealt(rank: int, world_size: int) -> list[str]:
    generator = torch.Generator().manual_seed(1)
    scales = 10.0 ** torch.randint(-25, 25, (3, WIDE, 40), generator=generator, dtype=torch.float64)
    rows = scales * torch.randn(3, WIDE, 40, generator=generator, dtype=torch.float64)
    rows[1, 2, :3] = torch.tensor([math.nan, math.inf, -math.inf])
    parameter, unused = nn.Parameter(torch.ones(40)), nn.Parameter(torch.ones(2))
    exchange = Exchange(WIDE, rank, world_size)
    gradients = ShardGradients({"weight": parameter, "unused": unused}, exchange, summands=WIDE)
    found = []
    for step in range(3):
        for index, shard in enumerate(exchange.own):
            if shard != 3:  # a shard that does not reach it
                add(gradients, parameter, index, rows[step, shard])
        gradients.finish()
        assert unused.grad is None
        found += [digest(parameter.grad), str(gradients.exponents)]
    return found


def test_any_dealing_gives_the_same_bits(worlds: Worlds) -> None:
    expected = worlds.run(1, _dealt, 1)[0]

    for world_size in (2, 3, 4):
        assert worlds.run(world_size, _dealt, world_size) == [expected] * world_size
