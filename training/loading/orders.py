"""The order of an epoch's samples and its global batches, from (seed, epoch) or from a user's own sampler."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Protocol

import numpy as np

from training.loading.sample_rng import identity


@dataclass(frozen=True, kw_only=True)
class Order:
    """The global batches of one epoch, one after the other.

    entries: what the data set is indexed with, for all samples. ends: the position in `entries` behind each
    global batch. occurrences: how often each entry came up before; None if none came up twice.
    """

    entries: Sequence[Any]
    ends: Sequence[int]
    occurrences: Sequence[int] | None = None

    def begin(self, batch: int) -> int:
        """Returns the position at which a global batch begins; the end after the last."""
        return self.ends[min(batch, len(self.ends)) - 1] if batch and self.ends else 0


class Orders(Protocol):
    """Gives the order of each epoch."""

    def of(self, epoch: int) -> Order:
        """Returns the order of an epoch. May be collective: every rank must call it for the same epochs."""


class SeededOrders:
    """Every sample once in each epoch, shuffled by (seed, epoch) or as they come in the data set."""

    def __init__(
        self, samples: int, *, batch_size: int, shuffle: bool, seed: int = 0, drop_last: bool = False
    ) -> None:
        self.samples, self.shuffle, self.seed = samples, shuffle, seed
        self.ends = ends_of(samples, batch_size, drop_last=drop_last)

    def of(self, epoch: int) -> Order:
        """Returns the order of an epoch."""
        if not self.shuffle:
            return Order(entries=range(self.samples), ends=self.ends)
        # Not torch's generator: it uses 32 bits of its seed, too few for both a seed and an epoch.
        generator = np.random.default_rng((self.seed, epoch))
        shuffled: Any = generator.permutation(self.samples)
        return Order(entries=memoryview(shuffled), ends=self.ends)


def ends_of(samples: int, batch_size: int, *, drop_last: bool) -> list[int]:
    """Returns the position behind each batch of `batch_size`; the last one may be short, or is left out."""
    ends = list(range(batch_size, samples + 1, batch_size))
    return ends if drop_last or samples % batch_size == 0 else [*ends, samples]


def order_of_samples(entries: Sequence[Any], batch_size: int, *, drop_last: bool) -> Order:
    """Returns the order in which `entries` are cut into batches of `batch_size`."""
    ends = ends_of(len(entries), batch_size, drop_last=drop_last)
    return Order(entries=entries, ends=ends, occurrences=_occurrences(entries))


def order_of_batches(batches: Sequence[Sequence[Any]]) -> Order:
    """Returns the order whose global batches are given."""
    entries = [entry for batch in batches for entry in batch]
    ends = list(accumulate(len(batch) for batch in batches))
    return Order(entries=entries, ends=ends, occurrences=_occurrences(entries))


def _occurrences(entries: Sequence[Any]) -> list[int] | None:
    seen: Counter[Hashable] = Counter()
    occurrences = []
    for which in map(identity, entries):
        occurrences.append(seen[which])
        seen[which] += 1
    return occurrences if len(seen) < len(entries) else None
