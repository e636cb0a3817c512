from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from training.models import FullyConnected, SmallInception


@pytest.mark.parametrize(
    ("norm", "kinds"), [(True, [nn.Linear, nn.BatchNorm1d, nn.Tanh]), (False, [nn.Linear, nn.Tanh])]
)
def test_a_hidden_layer_has_norm_or_a_bias_before_its_activation(norm: bool, kinds: list[type]) -> None:
    model = FullyConnected(in_features=6, width=5, depth=2, activation="tanh", norm=norm)

    for layer in model.hidden:
        parts = list(layer.children())
        assert [type(part) for part in parts] == kinds
        assert isinstance(parts[0], nn.Linear)
        assert (parts[0].bias is None) == norm
    assert model(torch.zeros(3, 2, 3)).shape == (3, 10)


def test_initial_weights_have_the_deviation_that_was_asked_for() -> None:
    torch.manual_seed(0)
    he = FullyConnected(in_features=400, width=300, depth=2, weight_scale=3.0)
    given = FullyConnected(in_features=400, width=300, depth=2, weight_std=0.05)

    def std(model: FullyConnected, index: int) -> float:
        linear = next(model.hidden[index].children())
        assert isinstance(linear, nn.Linear)
        return linear.weight.std().item()

    for index, inputs in enumerate((400, 300)):
        assert std(he, index) == pytest.approx(3 * math.sqrt(2 / inputs), rel=0.02)
        assert std(given, index) == pytest.approx(0.05, rel=0.02)
    assert he.head.weight.std().item() == pytest.approx(math.sqrt(2 / 300), rel=0.05)


def test_an_unknown_activation_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(ValueError, match="'swish' is not one of relu, sigmoid, tanh"):
        FullyConnected(activation="swish")  # type: ignore[arg-type]


@pytest.mark.parametrize("norm", [True, False])
def test_small_inception_normalises_each_convolution_or_none(norm: bool) -> None:
    model = SmallInception(width=2, norm=norm)
    convolutions = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d)]
    norms = [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]

    assert len(convolutions) == 15
    assert len(norms) == (15 if norm else 0)
    assert all((layer.bias is None) == norm for layer in convolutions)
    assert model(torch.zeros(2, 1, 28, 28)).shape == (2, 10)
