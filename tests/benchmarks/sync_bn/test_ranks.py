from __future__ import annotations

import pytest
import torch

from benchmarks.sync_bn.ranks import OURS, TOLERANCE, Disagreement, largest_difference, slowest

VALUES = torch.tensor([1.0, -4.0])


def test_contestants_may_differ_by_rounding() -> None:
    results = {OURS: {"dx": VALUES}, "peer": {"dx": VALUES * (1 + TOLERANCE / 2)}}

    assert largest_difference(results) == pytest.approx(TOLERANCE / 2, rel=0.01)


@pytest.mark.parametrize("wrong", [VALUES * (1 + 2 * TOLERANCE), VALUES * float("nan"), -VALUES])
def test_a_contestant_with_other_results_is_named_and_not_timed(wrong: torch.Tensor) -> None:
    with pytest.raises(Disagreement, match="peer and SyncBatchNorm differ in dx"):
        largest_difference({OURS: {"dx": VALUES}, "peer": {"dx": wrong}})


def test_a_round_takes_as_long_as_its_slower_rank() -> None:
    assert slowest([{"a": [1.0, 5.0]}, {"a": [2.0, 3.0]}]) == {"a": [2.0, 5.0]}
