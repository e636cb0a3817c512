"""Which batches have fewer samples than the collate function was given."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import default_collate

from training.errors import StepError
from training.loading.dropped_samples import Kept, collated


def readable(samples: list[Any]) -> list[Any]:
    return [sample for sample in samples if sample is not None]


def test_a_batch_of_what_is_left_has_as_many_samples() -> None:
    samples = [{"x": torch.ones(3), "name": "a"}, None, {"x": torch.ones(3), "name": "b"}]

    found = collated(lambda given: default_collate(readable(given)), samples)

    assert isinstance(found, Kept)
    assert found.samples == 2
    assert found.batch["x"].shape == (2, 3)


def time_first(samples: list[Tensor]) -> Tensor:
    return torch.stack(samples, dim=1)


def paired(samples: list[Tensor]) -> Tensor:
    return torch.stack(samples).reshape(len(samples) // 2, -1)


@pytest.mark.parametrize("collate", [torch.stack, time_first, paired, torch.cat])
def test_a_batch_of_another_length_is_that_of_all_samples(collate: Any) -> None:
    samples = [torch.ones(3)] * 4

    found = collated(collate, samples)

    torch.testing.assert_close(found, collate(samples))


def test_what_drops_all_of_a_share_says_so() -> None:
    with pytest.raises(IndexError) as told:
        collated(lambda given: default_collate(readable(given)), [None, None])
    assert "has dropped all 2 of this worker's share" in told.value.__notes__[0]

    with pytest.raises(StepError, match="the collate_fn returned None for the 2 samples"):
        collated(lambda given: default_collate(readable(given)) if readable(given) else None, [None, None])


def test_another_error_is_told_as_it_is() -> None:
    with pytest.raises(TypeError) as told:
        collated(default_collate, [None, None])
    assert not hasattr(told.value, "__notes__")
