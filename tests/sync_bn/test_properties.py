"""For every way of cutting a batch, the ranks compute what one process does."""

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.sync_bn import layouts
from tests.sync_bn.conftest import RanksOf
from tests.sync_bn.one_process import (
    Passes,
    assert_as_one_process,
    batch_norm,
    kernels_device,
    reference_steps,
    steps_in_rank,
)

# The package promises tests that need torch and pytest alone; the other files hold examples of the same.
pytest.importorskip("hypothesis")
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

CUTS = st.integers(2, 3).flatmap(
    lambda world_size: st.lists(st.integers(0, 4), min_size=world_size, max_size=world_size)
)
OPTIONS = st.fixed_dictionaries(
    {
        "momentum": st.sampled_from([0.1, 0.7, 1.0, None]),
        "affine": st.booleans(),
        "track_running_stats": st.booleans(),
        "eps": st.sampled_from([1e-5, 1e-3]),
    }
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    cuts=st.lists(CUTS, min_size=1, max_size=2),
    channels=st.integers(1, 4),
    rest=st.lists(st.integers(1, 3), max_size=3),
    options=OPTIONS,
    layout=st.sampled_from(layouts.ALL),
    seed=st.integers(0, 2**31),
)
def test_any_cut_of_any_batch_gives_what_one_process_computes(
    ranks_of: RanksOf,
    cuts: list[list[int]],
    channels: int,
    rest: list[int],
    options: dict[str, Any],
    layout: layouts.Layout,
    seed: int,
) -> None:
    values_per_sample = torch.Size(rest).numel()
    cuts = [cut for cut in cuts if len(cut) == len(cuts[0])]
    assume(all(sum(cut) * values_per_sample > 1 for cut in cuts))
    torch.manual_seed(seed)
    layer = batch_norm(2 + len(rest), channels, **options).double()

    def parts(cut: list[int]) -> list[Tensor]:
        return [layout(3 * torch.randn(n, channels, *rest, dtype=torch.float64) + 2) for n in cut]

    batches = [(parts(cut), parts(cut)) for cut in cuts]

    by_rank = ranks_of(len(cuts[0])).run(steps_in_rank, layer, batches)

    for steps, reference in zip(zip(*by_rank, strict=True), reference_steps(layer, batches), strict=True):
        assert_as_one_process(steps, reference, rtol=1e-6, atol=1e-9)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    cut=CUTS,
    channels=st.sampled_from([1, 2, 3, 15, 16, 17, 31, 33, 48, 65]),
    rest=st.sampled_from([[], [1], [5], [15], [16], [47], [4, 4], [3, 11], [9, 2], [2, 3, 3]]),
    options=OPTIONS,
    layout=st.sampled_from(layouts.ALL),
    passes=st.sampled_from(["native", "torch", *(["triton"] if kernels_device() else [])]),
    seed=st.integers(0, 2**31),
)
def test_any_cut_of_float32_gives_what_one_process_computes_through_either_passes(
    ranks_of: RanksOf,
    cut: list[int],
    channels: int,
    rest: list[int],
    options: dict[str, Any],
    layout: layouts.Layout,
    passes: Passes,
    seed: int,
) -> None:
    assume(sum(cut) * torch.Size(rest).numel() > 1)
    torch.manual_seed(seed)
    layer = batch_norm(2 + len(rest), channels, **options)
    shape = (sum(cut), channels, *rest)
    # Values above and below in turn, so that no variance is about zero, where rounding is all there is.
    sign = 1 - 2 * (torch.arange(sum(cut) * torch.Size(rest).numel()) % 2).view(sum(cut), 1, *rest)
    x, dy = 3 * sign + 0.5 * torch.randn(shape) + 5, torch.randn(shape)
    batch = [layout(part) for part in torch.split(x, cut)], [layout(part) for part in torch.split(dy, cut)]

    steps = [s for (s,) in ranks_of(len(cut)).run(steps_in_rank, layer, [batch], passes)]

    assert_as_one_process(steps, reference_steps(layer, [batch])[0], rtol=1e-5, atol=1e-5)
