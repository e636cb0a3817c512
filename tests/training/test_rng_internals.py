"""Private parts of torch work as drawing by sample relies on; a failure names what an upgrade changed."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from training.rng_internals import OPENED, in_transformation, safe_softmax


class Calls(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[Any] = []

    def __torch_function__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.found.append(func)
        return func(*args, **kwargs or {})


def test_an_opened_function_hands_a_mode_what_it_calls_and_computes_the_same() -> None:
    x = torch.ones(3, 4, 5)
    for function, inner in (
        (F.dropout1d, torch.feature_dropout),
        (F.alpha_dropout, torch.alpha_dropout),
        (F.feature_alpha_dropout, torch.feature_alpha_dropout),
        (F.gumbel_softmax, Tensor.exponential_),
    ):
        torch.manual_seed(1)
        expected = function(x)
        torch.manual_seed(1)
        with Calls() as calls:
            actual = OPENED[function](x)
        assert torch.equal(actual, expected)
        assert function not in calls.found
        assert inner in calls.found


def test_attention_of_several_heads_and_backward_passes_hand_themselves_to_a_mode() -> None:
    layer, x = nn.MultiheadAttention(4, 2, dropout=0.1), torch.ones(3, 2, 4)

    with Calls() as calls:
        layer(x, x, x)[0].sum().backward()

    assert F.multi_head_attention_forward in calls.found
    assert Tensor.backward in calls.found


def test_a_softmax_of_nothing_is_zero() -> None:
    scores = torch.tensor([[0.0, 0.0], [-math.inf, -math.inf]])

    assert safe_softmax(scores).tolist() == [[0.5, 0.5], [0, 0]]


def test_it_is_known_whether_a_transformation_runs() -> None:
    found = []

    def look(x: Tensor) -> Tensor:
        found.append(in_transformation())
        return x

    look(torch.ones(2))
    torch.vmap(look)(torch.ones(2))

    assert found == [False, True]
