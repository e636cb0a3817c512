"""Data as labs have it: streams with and without a length, and samplers of many kinds."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    Sampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
    get_worker_info,
)

from tests.training.attempts import STOP_AFTER
from tests.training.lab_modules import COLLATED, Regression, Samples, features

BATCH = 4


class Stoppable(Regression):
    """Asks for a stop in the step that the environment names, counted over the attempt."""

    steps = 0

    def training_step(self, batch: Any, index: int) -> Any:
        self.steps += 1
        after, _, path = os.environ.get(STOP_AFTER, "").partition(":")
        if after and self.steps >= int(after):
            Path(path).touch()
        return super().training_step(batch, index)

    def test_step(self, batch: Any, _index: int) -> None:  # noqa: PT019 (no test)
        self.log("test_loss", self.loss_of(batch), batch_size=len(features(batch)[1]))


class Stream(IterableDataset[Any]):
    """Samples one after the other; `noise` of all generators is added. Processes of a loader share them."""

    def __init__(self, count: int, seed: int, noise: float = 0.0, fails_at: int | None = None) -> None:
        self.samples, self.noise, self.fails_at = Samples(count, seed), noise, fails_at

    def __iter__(self) -> Iterator[Any]:
        info = get_worker_info()
        first, step = (info.id, info.num_workers) if info else (0, 1)
        for index in range(first, len(self.samples), step):
            if index == self.fails_at:
                raise LookupError("a broken shard")
            x, y, name = self.samples[index]
            drawn = torch.rand(()).item() + np.random.rand() + random.random()
            yield x + self.noise * drawn, y, name


class StreamWithLength(Stream):
    def __len__(self) -> int:
        return len(self.samples)


class Streams(LightningDataModule):
    """Streams to train and to validate on."""

    def __init__(
        self,
        count: int = 14,
        known: bool = False,
        processes: int = 0,
        noise: float = 0.0,
        kind: str = "tuple",
        fails_at: int | None = None,
    ) -> None:
        super().__init__()
        self.count, self.make = count, StreamWithLength if known else Stream
        self.processes, self.noise, self.kind, self.fails_at = processes, noise, kind, fails_at

    def train_dataloader(self) -> DataLoader[Any]:
        return self._loader(self.make(self.count, 1, self.noise, self.fails_at))

    def val_dataloader(self) -> DataLoader[Any]:
        return self._loader(self.make(9, 2))

    def test_dataloader(self) -> DataLoader[Any]:
        return self._loader(self.make(5, 3))

    def _loader(self, stream: Stream) -> DataLoader[Any]:
        return DataLoader(
            stream,
            batch_size=BATCH,
            collate_fn=COLLATED[self.kind],
            num_workers=self.processes,
            multiprocessing_context="fork" if self.processes else None,
        )


class Buckets(Sampler[list[int]]):
    """Batches of 4, 7 and 5 samples in an order of the epoch, with another number of them in odd epochs."""

    def __init__(self, even: int, odd: int) -> None:
        self.epoch, self.lengths = 0, (even, odd)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[int]]:
        batches = [[0, 1, 2, 3], [4, 5, 6, 7, 8, 9, 10], [11, 12, 13, 14, 15], [16, 17, 18, 19]]
        random.shuffle(batches)
        return islice(batches, len(self))

    def __len__(self) -> int:
        return self.lengths[self.epoch % 2]


class Some(Sampler[int]):
    """Some samples of a permutation by NumPy, without a length."""

    def __iter__(self) -> Iterator[int]:
        return iter(np.random.permutation(20)[:12].tolist())


class Private(Sampler[int]):
    """An order of a generator of its own, which follows from no epoch."""

    def __init__(self) -> None:
        self.generator = np.random.default_rng(3)

    def __iter__(self) -> Iterator[int]:
        return iter(self.generator.permutation(20).tolist())

    def __len__(self) -> int:
        return 20


class Noisy(Samples):
    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, str]:
        x, y, name = super().__getitem__(index)
        return x + torch.rand(()), y, name


def loader_with(kind: str, dataset: Any) -> DataLoader[Any]:
    """A loader whose sampler is of one of the kinds below."""
    weights = torch.arange(1.0, 21)
    generator = torch.Generator()
    kinds: dict[str, dict[str, Any]] = {
        "weighted": {"sampler": WeightedRandomSampler(weights.tolist(), 20)},
        "weighted, with a generator": {
            "sampler": WeightedRandomSampler(weights.tolist(), 12, generator=generator)
        },
        "subset": {"sampler": SubsetRandomSampler(range(3, 15))},
        "with replacement": {"sampler": RandomSampler(dataset, replacement=True, num_samples=20)},
        "fewer": {"sampler": RandomSampler(dataset, num_samples=12)},
        "without a length": {"sampler": Some()},
        "buckets": {"batch_sampler": Buckets(4, 3)},
        "more buckets": {"batch_sampler": Buckets(3, 4)},
        "batches of a sampler": {"batch_sampler": BatchSampler(SubsetRandomSampler(range(3, 15)), 3, True)},
        "private": {"sampler": Private()},
    }
    return DataLoader(dataset, collate_fn=COLLATED["tuple"], **kinds[kind])


class Sampled(LightningDataModule):
    """Trains in the order of a sampler, on samples with noise."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def train_dataloader(self) -> DataLoader[Any]:
        return loader_with(self.kind, Noisy(20, 1))

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(Samples(9, 2), batch_size=BATCH, collate_fn=COLLATED["tuple"])


class Validated(Sampled):
    """Validates in the order of a sampler."""

    def train_dataloader(self) -> DataLoader[Any]:
        return super().val_dataloader()

    def val_dataloader(self) -> DataLoader[Any]:
        return super().train_dataloader()
