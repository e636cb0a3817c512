from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.utils.rnn import pack_sequence
from torch.utils.data import default_collate

from training.loading.empty_shares import Placeholder, empty_batch

SAMPLE = {"x": torch.ones(3), "name": "a", "y": 1}


def test_tensors_are_cut_names_are_left_out_and_what_is_the_same_for_any_number_stays() -> None:
    def collate(samples: list[Any]) -> Any:
        return [default_collate(samples), torch.arange(4), "fixed", None]

    batch, anchors, *rest = empty_batch(collate([SAMPLE]), collate([SAMPLE, SAMPLE]))

    assert batch["x"].shape == (0, 3)
    assert batch["y"].shape == (0,)
    assert batch["name"] == []
    assert torch.equal(anchors, torch.arange(4))
    assert rest == ["fixed", None]


@pytest.mark.parametrize(
    ("one", "two"),
    [
        (torch.ones(5, 1, 3), torch.ones(5, 2, 3)),
        ([torch.ones(3)], [torch.ones(3)] * 2),
        (pack_sequence([torch.ones(1, 3)]), pack_sequence([torch.ones(1, 3)] * 2)),
        ((torch.ones(1, 3), torch.tensor([1])), (torch.ones(2, 3), torch.tensor([2]))),
        ({"count": 1}, {"count": 2}),
        (object(), object()),
    ],
    ids=["time first", "a tensor a sample", "packed", "a count in a tensor", "a count", "an object"],
)
def test_what_is_not_known_to_be_cut_is_a_placeholder_with_two_samples(one: Any, two: Any) -> None:
    found = empty_batch(one, two)

    assert isinstance(found, Placeholder)
    assert found.batch is two
