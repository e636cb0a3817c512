"""Checksums see every bit, and the first module that computes something else is named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from training.bits import checksums
from training.bits.checksums import checksum, sum_of_bits
from training.bits.observed import Observed, difference

SAMPLES = torch.arange(12.0).reshape(3, 4) - 5


@pytest.mark.parametrize("of_bits", [checksum, sum_of_bits])
@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.bfloat16, torch.complex64, torch.int8, torch.bool]
)
def test_a_checksum_is_that_of_all_bits_in_their_places(
    dtype: torch.dtype, of_bits: Callable[[Tensor], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checksums, "_PART", 1000)
    tensor = torch.randint(2, (5000,), generator=torch.Generator().manual_seed(1)).to(dtype)
    for place in (0, 999, 1000, 4999):
        other = tensor.clone()
        other.view(torch.uint8)[place * tensor.element_size()] ^= 1
        assert of_bits(other) != of_bits(tensor)

    assert of_bits(tensor.clone()) == of_bits(tensor)
    assert of_bits(tensor.flip(0)) != of_bits(tensor)
    assert of_bits(tensor.roll(1000)) != of_bits(tensor)


def test_a_checksum_tells_dtypes_zeros_and_nans_apart() -> None:
    zeros = [torch.zeros(2), torch.zeros(2, dtype=torch.int32), -torch.zeros(2), torch.full((2,), torch.nan)]

    assert len({checksum(each) for each in zeros}) == len(zeros)
    table = torch.eye(3)[:2]
    assert checksum(table) != checksum(table.reshape(3, 2))
    assert checksum(table.t()) == checksum(table.t().contiguous())
    assert checksum(torch.zeros(0)) != checksum(torch.zeros(0, 1))
    assert checksum(torch.eye(2).to_sparse()) == checksum(torch.zeros(2, 2).to_sparse())  # it has no bits


@dataclass
class Outputs:
    scores: Tensor
    hidden: dict[str, list[Tensor]]


class Nested(nn.Module):
    """Its outputs are in a dataclass; a late one depends on `extra`."""

    extra = 0.0

    def forward(self, x: Tensor) -> Outputs:
        return Outputs(x, {"a": [2 * x], "b": [x, x + self.extra]})


class Recomputed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = checkpoint(self.layer, x, use_reentrant=False)
        return output


class Step(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.first, self.same, self.last = nn.Linear(4, 4), nn.Sequential(nn.Identity()), nn.Linear(4, 1)
        self.activation, self.nested, self.inner = nn.ReLU(inplace=True), Nested(), Recomputed()
        self.scale = self.after = 1.0

    def training_step(self, x: Tensor) -> Tensor:
        outputs = self.nested(self.activation(self.first(x)))
        hidden = self.inner(self.same(outputs.hidden["b"][1]))
        hidden.register_hook(lambda gradient: gradient * self.scale)
        loss: Tensor = self.last(hidden).square().mean()
        return loss


def observed(module: Step, *, late: float = 0.0, **changed: Any) -> Observed:
    """What a step of one shard computes. late: is added to what the activation has made in place."""
    shard: list[int] = [3]
    seen = Observed(module, lambda: shard[0] if shard else None)
    for name, value in changed.items():
        setattr(module, name, value)
    with seen:
        hook = module.activation.register_forward_hook(lambda _part, _inputs, output: output + late)
        loss = module.training_step(SAMPLES)
        seen.outputs(3, loss)
        hook.remove()
        shard.clear()
        loss.backward()  # type: ignore[no-untyped-call]
    return seen


def test_equal_steps_do_not_differ_and_every_module_is_seen_once() -> None:
    module = Step()
    one = observed(module)

    assert difference(one, observed(module)) == ""
    assert [key[:2] for key in one.forward[3] if key[-1] == 0 and key[0] == "output"] == [
        ("output", name)
        for name in (
            "first (Linear)",
            "activation (ReLU)",
            "nested (Nested)",
            "same.0 (Identity)",
            "same (Sequential)",
            "inner.layer (Linear)",
            "inner (Recomputed)",
            "last (Linear)",
        )
    ]


def test_the_first_that_differs_is_named() -> None:
    module = Step()
    one = observed(module)

    module.nested.extra = 1e-6
    assert difference(one, observed(module)) == "the output of nested (Nested) is another one"
    module.nested.extra = 0.0
    late = "what Step.training_step passes to nested (Nested) is another one"
    assert difference(one, observed(module, late=1e-6)) == late
    assert difference(one, observed(module, scale=3.0)) == (
        "the gradient that inner.layer (Linear) passes back is another one"
    )


def test_a_step_that_takes_another_way_differs_where_it_leaves() -> None:
    module = Step()
    one = observed(module)
    module.inner.forward = lambda x: x  # type: ignore[method-assign]

    assert (
        difference(one, observed(module))
        == "what inner (Recomputed) passes to inner.layer (Linear) is missing"
    )
    assert difference(observed(module), one).startswith("the output of inner (Recomputed) is another one")
