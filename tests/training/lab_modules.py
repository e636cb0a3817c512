"""Modules and data as labs have them: batches of many kinds, losses and logs by hand, several optimizers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence, pack_sequence
from torch.utils.data import DataLoader, Dataset
from torchmetrics import MeanAbsoluteError, MeanSquaredError, MetricCollection, SumMetric

SAMPLES, VALIDATION = 14, 9  # the last batch leaves the third of three ranks without a sample
Sample = tuple[Tensor, Tensor, str]


class Samples(Dataset[Sample]):
    """Sequences (7, 4), their sums (1,) and names."""

    def __init__(self, count: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.x = torch.randn(count, 7, 4, generator=generator, dtype=torch.float64)
        self.y = self.x.mean(1).sum(1, keepdim=True) + 0.3

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> Sample:
        return self.x[index], self.y[index], f"sample {index}"


@dataclass
class Record:
    x: Tensor
    y: Tensor


class Pair(NamedTuple):
    x: Tensor
    y: Tensor


class Opaque:
    """Of a class that nobody but its author knows."""

    def __init__(self, samples: list[Sample]) -> None:
        self._inside = _stacked(samples)

    def contents(self) -> tuple[Tensor, Tensor]:
        return self._inside


def _stacked(samples: list[Sample]) -> tuple[Tensor, Tensor]:
    return torch.stack([x for x, *_ in samples]), torch.stack([y for _, y, _ in samples])


def _of_different_lengths(samples: list[Sample]) -> list[Tensor]:
    return [x[: 3 + int(y.abs() * 100) % 5] for x, y, _ in samples]


def packed(batch: Any) -> Tensor:
    """The mean of each sequence."""
    padded, lengths = nn.utils.rnn.pad_packed_sequence(batch)
    means: Tensor = padded.sum(0) / lengths[:, None]
    return means


COLLATED: dict[str, Callable[[list[Sample]], Any]] = {
    "tuple": lambda s: _stacked(s),
    "list with names": lambda s: [*_stacked(s), [name for *_, name in s]],
    "dict": lambda s: dict(zip("xy", _stacked(s), strict=True)),
    "named tuple": lambda s: Pair(*_stacked(s)),
    "dataclass": lambda s: Record(*_stacked(s)),
    "own class": lambda s: Opaque(s),
    "time first": lambda s: {"x": _stacked(s)[0].transpose(0, 1).contiguous(), "y": _stacked(s)[1]},
    "tensors of different sizes": lambda s: {"x": _of_different_lengths(s), "y": [y for _, y, _ in s]},
    "packed": lambda s: (pack_sequence(_of_different_lengths(s), enforce_sorted=False), _stacked(s)[1]),
    "no tensor": lambda s: [(x.tolist(), y.item()) for x, y, _ in s],
}


def features(batch: Any) -> tuple[Tensor, Tensor]:
    """(N, 4) and (N, 1) of a batch of any of these kinds."""
    if isinstance(batch, Opaque):
        x, y = batch.contents()
        return x.mean(1), y
    if isinstance(batch, Record):
        return batch.x.mean(1), batch.y
    if isinstance(batch, dict) and isinstance(batch["x"], list):
        return torch.stack([x.mean(0) for x in batch["x"]]), torch.stack(batch["y"])
    if isinstance(batch, dict):
        return batch["x"].mean(0 if batch["x"].shape[0] == 7 else 1), batch["y"]
    if isinstance(batch[0], PackedSequence):
        return packed(batch[0]), batch[1]
    if isinstance(batch[0], tuple):  # lists of numbers
        x = torch.tensor([x for x, _ in batch], dtype=torch.float64)
        return x.mean(1), torch.tensor([[y] for _, y in batch], dtype=torch.float64)
    return batch[0].mean(1), batch[1]


class Data(LightningDataModule):
    """With a batch size that a plain Trainer uses; a job has its own."""

    def __init__(self, kind: str = "tuple", batch_size: int = 4) -> None:
        super().__init__()
        self.kind, self.batch_size = kind, batch_size

    def _loader(self, count: int, seed: int) -> DataLoader[Any]:
        return DataLoader(Samples(count, seed), batch_size=self.batch_size, collate_fn=COLLATED[self.kind])

    def train_dataloader(self) -> DataLoader[Any]:
        return self._loader(SAMPLES, 1)

    def val_dataloader(self) -> DataLoader[Any]:
        return self._loader(VALIDATION, 2)


class Hooked(Data):
    """Changes batches on their way to the device, and needs its trainer to set up."""

    def prepare_data(self) -> None:
        self.prepared = True

    def setup(self, stage: str) -> None:
        assert stage == "fit"
        assert self.trainer is not None
        self.scale = 1.0 + (self.trainer.max_epochs or 0)

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return [batch[0] * self.scale, batch[1] + dataloader_idx]

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:  # noqa: ARG002
        return [batch[0] - 0.1, batch[1]]

    def teardown(self, stage: str) -> None:
        print(f"teardown of {stage}")


class Several(Data):
    def train_dataloader(self) -> Any:
        return [super().train_dataloader(), super().train_dataloader()]


def network(inputs: int = 4) -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(inputs, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1))


class Regression(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = network()

    def loss_of(self, batch: Any) -> Tensor:
        x, y = features(batch)
        return F.mse_loss(self.net(x), y)

    def training_step(self, batch: Any, _index: int) -> Any:
        return self.loss_of(batch)

    def validation_step(self, batch: Any, _index: int) -> None:
        self.log("val_loss", self.loss_of(batch), batch_size=len(features(batch)[1]))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


class Logs(Regression):
    """What `self.log` can do, with sizes that are given because Lightning would guess wrong ones."""

    def training_step(self, batch: Any, _index: int) -> Tensor:
        x, y = features(batch)
        output = self.net(x)
        loss = F.mse_loss(output, y)
        self.log("mse", loss, on_step=True, on_epoch=True, batch_size=len(y))
        self.log("largest", y.max() if len(y) else torch.tensor(-torch.inf), reduce_fx="max", on_epoch=True)
        self.log("samples", float(len(y)), reduce_fx="sum", on_step=False, on_epoch=True)
        return loss


class Metrics(Regression):
    """A collection of torchmetrics, which counts samples, and one that adds them up."""

    def __init__(self) -> None:
        super().__init__()
        self.metrics = MetricCollection([MeanAbsoluteError(), MeanSquaredError()])
        self.seen = SumMetric()

    def training_step(self, batch: Any, _index: int) -> Tensor:
        x, y = features(batch)
        output = self.net(x)
        if len(y):
            self.metrics.update(output.detach(), y)
            self.seen.update(y.detach().sum())
        self.log_dict(dict(self.metrics.items()), on_step=False, on_epoch=True)
        self.log("seen", self.seen, on_step=False, on_epoch=True)
        return F.mse_loss(output, y)


class Adversarial(LightningModule):
    """Two optimizers by hand, of parameters of their own."""

    def __init__(self, *, toggle: bool = True) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.generator = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh())
        self.critic, self.toggle = network(5), toggle

    def training_step(self, batch: Any, _index: int) -> None:
        x, y = features(batch)
        optimizers: Any = self.optimizers()
        real = torch.cat([x, y], 1)
        for optimizer, loss in zip(optimizers, (self._generator_loss, self._critic_loss), strict=True):
            if self.toggle:
                self.toggle_optimizer(optimizer)
            optimizer.zero_grad()
            self.manual_backward(loss(x, real))
            optimizer.step()
            if self.toggle:
                self.untoggle_optimizer(optimizer)

    def _generator_loss(self, x: Tensor, _real: Tensor) -> Tensor:
        fake = self.critic(self.generator(x))
        return F.binary_cross_entropy_with_logits(fake, torch.ones_like(fake))

    def _critic_loss(self, x: Tensor, real: Tensor) -> Tensor:
        found, fake = self.critic(real), self.critic(self.generator(x).detach())
        return F.binary_cross_entropy_with_logits(
            found, torch.ones_like(found)
        ) + F.binary_cross_entropy_with_logits(fake, torch.zeros_like(fake))

    def configure_optimizers(self) -> Any:
        return [
            torch.optim.SGD(self.generator.parameters(), lr=0.05),
            torch.optim.SGD(self.critic.parameters(), lr=0.02),
        ]
