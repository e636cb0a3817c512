"""Data sets and collate functions, with a planted fault each, or with none although they look like it."""

from __future__ import annotations

import functools
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    Dataset,
    Subset,
    WeightedRandomSampler,
    default_collate,
    get_worker_info,
)

from training.samples import sample_generator

SEEN: list[Any] = []
"""What `Counted` has given in this process."""

_count = 0


class Plain(Dataset[Any]):
    """Images of noise in three classes."""

    def __init__(self) -> None:
        self.x = torch.randn(32, 1, 8, 8, generator=torch.Generator().manual_seed(1))

    def __len__(self) -> int:
        return 32

    def __getitem__(self, index: int) -> Any:
        return self.changed(self.x[index], index), index % 3

    def changed(self, x: Tensor, index: int) -> Tensor:  # noqa: ARG002
        return x


class Counts(Plain):
    count = 0

    def changed(self, x: Tensor, index: int) -> Tensor:  # noqa: ARG002
        self.count += 1
        return x + self.count


class CountsGlobally(Plain):
    def changed(self, x: Tensor, index: int) -> Tensor:  # noqa: ARG002
        global _count
        _count += 1
        return x + _count


class CachesDraws(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.cache: dict[int, Tensor] = {}

    def changed(self, x: Tensor, index: int) -> Tensor:
        if index not in self.cache:
            self.cache[index] = x + torch.randn(())
        return self.cache[index]


class ChangesItself(Plain):
    def changed(self, x: Tensor, index: int) -> Tensor:  # noqa: ARG002
        return x.mul_(1.01)


class OwnCongruence(Plain):
    """Draws by arithmetic of its own."""

    state = 1

    def changed(self, x: Tensor, index: int) -> Tensor:  # noqa: ARG002
        self.state = self.state * 1103515245 % 2**31
        return x + self.state / 2**31


class Unseeded(Plain):
    def changed(self, x: Tensor, index: int) -> Tensor:  # noqa: ARG002
        return x + os.urandom(1)[0]


class ReadsRank(Plain):
    def changed(self, x: Tensor, index: int) -> Tensor:  # noqa: ARG002
        return x + dist.get_rank()


class OneOfEachRank(Plain):
    def changed(self, x: Tensor, index: int) -> Tensor:  # noqa: ARG002
        return x + [0.5][dist.get_rank()]


class ReadsProcess(Plain):
    def changed(self, x: Tensor, index: int) -> Tensor:  # noqa: ARG002
        told = get_worker_info()
        return x + (told.id if told else 0)


class CountsDict(Counts):
    def __getitem__(self, index: int) -> Any:
        return {"image": self.x[index], "meta": {"position": self.changed(self.x[0, 0, 0, 0], index)}}


class Counting:
    """A collate function that counts."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, samples: list[Any]) -> Any:
        self.calls += 1
        x, y = default_collate(samples)
        return x * self.calls, y


class Augments(Plain):
    """Draws from every generator there is."""

    def __init__(self) -> None:
        super().__init__()
        self.numpy, self.python = np.random.default_rng(0), random.Random(0)
        self.torch = torch.Generator()

    def changed(self, x: Tensor, index: int) -> Tensor:  # noqa: ARG002
        draws = (
            float(np.random.rand()),
            random.random(),
            float(torch.rand(())),
            self.numpy.random(),
            self.python.random(),
            float(torch.rand((), generator=self.torch)),
            float(torch.rand((), generator=sample_generator())),
        )
        return x + sum(draws)


class MakesGenerator(Plain):
    """Makes its generator in the first sample."""

    generator: np.random.Generator | None = None

    def changed(self, x: Tensor, index: int) -> Tensor:  # noqa: ARG002
        if self.generator is None:
            self.generator = np.random.default_rng()
        return x + self.generator.random()


class Opens(Plain):
    """Opens a file in the first sample, reads it, and keeps what it has computed."""

    file: Any = None

    @functools.cached_property
    def means(self) -> dict[int, Tensor]:
        return {}

    def changed(self, x: Tensor, index: int) -> Tensor:
        if self.file is None:
            self.file = Path(__file__).open("rb")  # noqa: SIM115
        self.file.seek(index)
        if index not in self.means:
            self.means[index] = x.mean()
        byte: int = self.file.read(1)[0]
        return x - self.means[index] + byte / 256


class Prepared(Plain):
    """Needs what each process of its loader sets."""

    offset: float

    def changed(self, x: Tensor, index: int) -> Tensor:  # noqa: ARG002
        return x + self.offset


class Counted(Plain):
    """Counts and keeps what it gives, which changes nothing."""

    count = 0

    def changed(self, x: Tensor, index: int) -> Tensor:
        self.count += 1
        SEEN.append((self.count, index))
        return x


def noisy(samples: list[Any]) -> Any:
    """Collates, with draws."""
    x, y = default_collate(samples)
    return x + torch.randn_like(x) + random.random(), y


def _weighted(data: Plain) -> DataLoader[Any]:
    return DataLoader(data, sampler=WeightedRandomSampler([1.0] + [0.1] * 31, 32))


LOADERS: dict[str, Callable[[], DataLoader[Any]]] = {
    **{
        kind.__name__: functools.partial(lambda kind: DataLoader(kind(), shuffle=True), kind)
        for kind in (
            Counts,
            CountsGlobally,
            CountsDict,
            CachesDraws,
            ChangesItself,
            OwnCongruence,
            Unseeded,
            ReadsRank,
            OneOfEachRank,
            Augments,
            MakesGenerator,
            Opens,
            Counted,
        )
    },
    "a subset of Counts": lambda: DataLoader(Subset(Counts(), range(32))),
    "ChangesItself, as a list": lambda: DataLoader(ChangesItself(), collate_fn=list),
    "Counts in a process": lambda: DataLoader(Counts(), num_workers=1),
    "ReadsProcess in two": lambda: DataLoader(ReadsProcess(), num_workers=2),
    "a list": lambda: DataLoader([Plain()[index] for index in range(32)], shuffle=True),  # type: ignore[arg-type]
    "Counting": lambda: DataLoader(Plain(), collate_fn=Counting()),
    "Augments, noisy, in two processes": lambda: DataLoader(Augments(), num_workers=2, collate_fn=noisy),
    "Augments, weighted": lambda: _weighted(Augments()),
    "Prepared in a process": lambda: DataLoader(Prepared(), num_workers=1, worker_init_fn=_prepare),
}


def _prepare(_: int) -> None:
    told: Any = get_worker_info()
    told.dataset.offset = 0.5


class Data(LightningDataModule):
    def __init__(self, loader: str) -> None:
        super().__init__()
        self.loader = loader

    def train_dataloader(self) -> DataLoader[Any]:
        return LOADERS[self.loader]()
