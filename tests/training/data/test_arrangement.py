from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.training.data.test_data import ready, tensors, write
from training.data import ArrangedBatches, FashionMNIST
from training.data.arrangement import Arrangement, arranged
from training.loading.batches import share_loader

ARRANGEMENTS: tuple[Arrangement, ...] = ("random", "sorted", "balanced")
SOME_LABELS = st.lists(st.integers(0, 4), max_size=40).map(
    lambda found: torch.tensor(found, dtype=torch.int64)
)


@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
@given(labels=SOME_LABELS)
def test_an_arrangement_has_every_sample_of_the_batch_once(arrangement: Arrangement, labels: Tensor) -> None:
    assert sorted(arranged(labels, arrangement).tolist()) == list(range(len(labels)))


@given(labels=SOME_LABELS)
def test_sorted_labels_ascend_and_in_balanced_ones_no_class_comes_again_before_the_others(
    labels: Tensor,
) -> None:
    ascending, balanced = (labels[arranged(labels, each)].tolist() for each in ("sorted", "balanced"))

    assert ascending == sorted(labels.tolist())
    left = labels.tolist()
    while left:
        turn, balanced = balanced[: len(set(left))], balanced[len(set(left)) :]
        assert turn == sorted(set(left))
        for label in turn:
            left.remove(label)


def test_batches_of_all_arrangements_have_the_same_samples_and_other_ones_in_another_epoch() -> None:
    labels = torch.arange(50) % 10

    def batches(arrangement: Arrangement, seed: int) -> list[set[int]]:
        torch.manual_seed(seed)
        drawn = list(ArrangedBatches(labels, arrangement, 16))
        assert len(drawn) == len(labels)
        return [set(drawn[begin : begin + 16]) for begin in range(0, 50, 16)]

    first = [batches(arrangement, 0) for arrangement in ARRANGEMENTS]
    assert first[0] == first[1] == first[2]
    assert batches("sorted", 1) != first[1]


def test_workers_share_a_sorted_batch_by_class(tmp_path: Path) -> None:
    root = str(write(tmp_path / "files", zipped=True))
    labels = tensors(ready(FashionMNIST(root=root)).train)[1]

    def share(arrangement: Arrangement | None, rank: int) -> list[int]:
        data = ready(FashionMNIST(root=root, arrangement=arrangement, batch=22))
        ((_, found),) = share_loader(data.train_dataloader(), batch_size=22, rank=rank, world_size=2, seed=0)
        return found.tolist()  # type: ignore[no-any-return]

    assert share("sorted", 0) + share("sorted", 1) == sorted(labels.tolist())
    assert share("balanced", 0)[:10] == list(range(10))
    assert sorted(share(None, 0) + share(None, 1)) == sorted(labels.tolist())


@pytest.mark.parametrize(("arrangement", "batch"), [("by size", 64), ("sorted", 0)])
def test_an_arrangement_that_does_not_exist_is_refused(arrangement: Arrangement, batch: int) -> None:
    with pytest.raises(ValueError, match="expected one of random, sorted, balanced, and at least 1 sample"):
        FashionMNIST(arrangement=arrangement, batch=batch)
