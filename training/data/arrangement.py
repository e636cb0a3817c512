"""Samples arranged by class within each batch, without a change of what a batch has."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Literal

import torch
from torch import Tensor
from torch.utils.data import Sampler

Arrangement = Literal["random", "sorted", "balanced"]


class ArrangedBatches(Sampler[int]):
    """Shuffles all samples anew in each epoch, and arranges each `batch` consecutive ones by class.

    Workers take consecutive parts of a batch, and ghost BatchNorm cuts these into consecutive groups. So the
    arrangement says which samples are normalised together without synchronization; the batches, and with them
    what synchronized BatchNorm computes, are the same for all three:

    random: as shuffled. sorted: by class, so that a group has few classes. balanced: the classes take turns,
    so that a group has as many classes as it can.

    labels: (N,) int64. batch: training.global_batch_size. The order follows torch's global generator. Raises
    ValueError for another arrangement, or if `batch` is below 1.
    """

    def __init__(self, labels: Tensor, arrangement: Arrangement, batch: int) -> None:
        check(arrangement, batch)
        self.labels, self.arrangement, self.batch = labels, arrangement, batch

    def __len__(self) -> int:
        return len(self.labels)

    def __iter__(self) -> Iterator[int]:
        for samples in torch.split(torch.randperm(len(self.labels)), self.batch):
            yield from samples[arranged(self.labels[samples], self.arrangement)].tolist()


def check(arrangement: Arrangement, batch: int) -> None:
    """Raises ValueError for an arrangement that does not exist, or if `batch` is below 1."""
    if arrangement not in _ARRANGED or batch < 1:
        raise ValueError(
            f"arrangement={arrangement!r}, batch={batch}: expected one of {', '.join(_ARRANGED)}, and at "
            "least 1 sample"
        )


def arranged(labels: Tensor, arrangement: Arrangement) -> Tensor:
    """Returns the order of one batch, (N,) int64: places in `labels`, which is (N,) int64."""
    return _ARRANGED[arrangement](labels)


def _balanced(labels: Tensor) -> Tensor:
    """The first sample of each class, then the second of each, and so on."""
    by_class = torch.argsort(labels, stable=True)
    _, counts = torch.unique(labels, return_counts=True)
    turns = torch.cat([torch.arange(int(count)) for count in counts]) if len(labels) else labels
    return by_class[torch.argsort(turns, stable=True)]


_ARRANGED: Mapping[str, Callable[[Tensor], Tensor]] = {
    "random": lambda labels: torch.arange(len(labels)),
    "sorted": lambda labels: torch.argsort(labels, stable=True),
    "balanced": _balanced,
}
