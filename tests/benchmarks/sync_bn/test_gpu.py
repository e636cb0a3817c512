"""What of the GPU's part can be seen without one."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from benchmarks.sync_bn.cases import Case
from benchmarks.sync_bn.gpu_checks import difference_from_float64

CASE = Case(batch=4, channels=3, side=5)


@pytest.mark.parametrize(
    ("layer", "low", "high"),
    [
        (nn.BatchNorm2d(3), 1e-9, 1e-5),
        (nn.BatchNorm2d(3, eps=0.01), 1e-3, 1e-1),
        (nn.BatchNorm2d(3).eval(), 1e-2, 1e2),
    ],
)
def test_the_difference_from_float64_is_that_of_the_layer(layer: nn.Module, low: float, high: float) -> None:
    difference = difference_from_float64(layer, CASE.tensor(seed=0).requires_grad_(), CASE.tensor(seed=1))

    assert low < difference < high


def test_a_layer_that_gives_no_numbers_is_not_close() -> None:
    layer = nn.BatchNorm2d(3)
    nn.init.constant_(layer.weight, torch.nan)

    difference = difference_from_float64(layer, CASE.tensor(seed=0).requires_grad_(), CASE.tensor(seed=1))

    assert not difference <= 1.0
