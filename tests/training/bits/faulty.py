"""Small networks with a planted fault each, which would make weights depend on how the shards are dealt."""

from __future__ import annotations

import functools
import os
import random
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.distributed import get_rank
from torch.nn import functional as F
from torchmetrics.classification import MulticlassAccuracy

WIDTH = 8
VARIABLE = "LOCAL_RANK"
SEEN: list[Tensor] = []


class SumsShards(nn.Module):
    """Adds up what the shards of its worker have, in their order."""

    def __init__(self) -> None:
        super().__init__()
        self.sums = {"all": torch.zeros(WIDTH)}

    def forward(self, x: Tensor) -> Tensor:
        self.sums["all"] = self.sums["all"] + x.detach().mean(0)
        return x + self.sums["all"]


class SumsInPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.sums = [torch.zeros(WIDTH)]

    def forward(self, x: Tensor) -> Tensor:
        self.sums[0] += x.detach().mean(0)
        return x + self.sums[0]


class Caches(nn.Module):
    """Centres by what it has computed for the first shard."""

    def __init__(self) -> None:
        super().__init__()
        self.cache: dict[str, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        if "centre" not in self.cache:
            self.cache["centre"] = x.detach().mean(0)
        return x - self.cache["centre"]


class CachesCalls(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * _scale(len(x))


@functools.lru_cache
def _scale(_samples: int) -> float:
    return 1 + float(torch.rand(()))


class StatisticsOfList(nn.Module):
    """Normalises by all samples that it has seen."""

    def forward(self, x: Tensor) -> Tensor:
        SEEN.append(x.detach())
        return x / (1 + torch.cat(SEEN).std(0))


class Counts(nn.Module):
    count: ClassVar[int] = 0

    def forward(self, x: Tensor) -> Tensor:
        type(self).count += 1
        return x / type(self).count


class InClosure(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        mean = 0.0

        def moved(x: Tensor) -> Tensor:
            nonlocal mean
            mean = 0.9 * mean + 0.1 * float(x.detach().mean())
            return x - mean

        self.moved = moved

    def forward(self, x: Tensor) -> Tensor:
        return self.moved(x)


class OwnGenerator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(1)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.randn(x.shape, generator=self.generator)


class SeededByRank(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.randn(x.shape, generator=torch.Generator().manual_seed(get_rank()))


class ByVariable(nn.Module):
    """Reads a variable of the environment, if it is set."""

    def forward(self, x: Tensor) -> Tensor:
        return x + float(os.environ.get(VARIABLE, "0"))


class ByWorkersSamples(nn.Module):
    """Adds in another order for many samples of a worker."""

    def forward(self, x: Tensor) -> Tensor:
        samples = 1000 // dist.get_world_size()
        return x.sum(1, keepdim=True) + x if samples > 500 else x.flip(1).cumsum(1)[:, -1:] + x


class OneOfEachRank(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scales = [1.0] * dist.get_world_size()

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scales[dist.get_rank()]


class Unseeded(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + int.from_bytes(os.urandom(2))


class MadeInStep(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if not hasattr(self, "layer"):
            self.layer = nn.Linear(WIDTH, WIDTH)
        output: Tensor = self.layer(x)
        return output


class _RankInGradient(torch.autograd.Function):
    @staticmethod
    def forward(_ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(_ctx: Any, gradient: Tensor) -> Any:
        return gradient * (1 + dist.get_rank())


class ScalesGradient(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        scaled: Tensor = _RankInGradient.apply(x)  # type: ignore[no-untyped-call]
        return scaled


class Hooked(nn.Identity):
    """Its output is changed by a hook."""

    def __init__(self) -> None:
        super().__init__()
        self.register_forward_hook(lambda _part, _inputs, output: output + dist.get_rank())


class MovesBuffer(nn.Module):
    centre: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.centre += dist.get_rank()
        return x


class MovesWeight(nn.Module):
    """Follows another weight, in every call."""

    def __init__(self) -> None:
        super().__init__()
        self.slow = nn.Parameter(torch.ones(WIDTH), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        self.slow.data.mul_(0.9)
        return x * self.slow


class Faulty(LightningModule):
    """Trains a network with one of these modules as its second, or with a fault of its own."""

    def __init__(self, fault: str) -> None:
        super().__init__()
        torch.manual_seed(1)
        part = FAULTS.get(fault, nn.Identity)()
        norm = nn.BatchNorm1d(WIDTH)
        self.net = nn.Sequential(nn.Linear(64, WIDTH), part, norm, nn.ReLU(), nn.Linear(WIDTH, 3))
        self.fault, self.rank = fault, dist.get_rank()

    def training_step(self, batch: Any, _index: int) -> Tensor:
        x, y = batch
        scores = self.net(x.flatten(1))
        if self.fault == "gradient of the step":
            scores = _RankInGradient.apply(scores)  # type: ignore[no-untyped-call]
        elif self.fault == "rate":
            for group in self.trainer.optimizers[0].param_groups:
                group["lr"] *= 0.9
        loss = F.cross_entropy(scores, y)
        if self.fault == "loss":
            loss = loss + self.global_rank
        elif self.fault == "rank of the start":
            loss = loss * (1 + self.rank)
        elif self.fault == "logged":
            self.log("worker", float(self.trainer.local_rank))
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.1)


class FaultyByHand(Faulty):
    """The same with manual optimization."""

    def __init__(self, fault: str) -> None:
        super().__init__(fault)
        self.automatic_optimization = False

    def training_step(self, batch: Any, index: int) -> Any:
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(super().training_step(batch, index))
        optimizer.step()


class Keeps(LightningModule):
    """Changes what it keeps in all places in each step, and computes nothing with it."""

    moved: Tensor
    count: ClassVar[int] = 0

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.net = nn.Sequential(
            nn.Linear(64, WIDTH), nn.BatchNorm1d(WIDTH), nn.Dropout(), nn.Linear(WIDTH, 3)
        )
        self.register_buffer("moved", torch.zeros(()))
        self.calls: list[str] = []
        self.table: dict[str, Any] = {"seen": set(), "tensor": torch.zeros(2), "array": np.zeros(2)}
        self.generators = torch.Generator().manual_seed(1), np.random.default_rng(1), random.Random(1)
        self.accuracy, self.steps, self.counter = MulticlassAccuracy(3), 0, counter()

    def training_step(self, batch: Any, _index: int) -> Tensor:
        ours, numpys, pythons = self.generators
        self.steps += 1
        type(self).count += 1
        self.moved += 1
        self.table["tensor"] += 1
        self.table["array"] += 1
        self.table["seen"].add(len(self.table["seen"]))
        self.table[f"step {self.steps}"] = len(SEEN)
        SEEN.append(torch.ones(1))
        drawn = torch.rand((), generator=ours), numpys.random(), pythons.random(), random.random()
        self.calls.append(f"{self.steps} {self.count} {self.moved} {self.table} {self.counter()} {drawn}")
        x, y = batch
        x.add_(1)
        scores = self.net(x.flatten(1))
        self.accuracy.update(scores, y)
        self.log("accuracy", self.accuracy, on_step=False, on_epoch=True)
        return F.cross_entropy(scores, y)

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), 0.1)


def counter() -> Callable[[], int]:
    """A function that keeps a number in its closure."""
    count = 0

    def counted() -> int:
        nonlocal count
        count += 1
        return count

    return counted


FAULTS: dict[str, Callable[[], nn.Module]] = {
    part.__name__: part
    for part in (
        SumsShards,
        SumsInPlace,
        Caches,
        CachesCalls,
        StatisticsOfList,
        Counts,
        InClosure,
        OwnGenerator,
        SeededByRank,
        ByVariable,
        ByWorkersSamples,
        OneOfEachRank,
        Unseeded,
        MadeInStep,
        ScalesGradient,
        Hooked,
        MovesBuffer,
        MovesWeight,
        nn.Dropout,
    )
}
