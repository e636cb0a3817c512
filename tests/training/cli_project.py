"""A small project for LightningCLI, which makes its networks, data and callbacks from a file."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import Metric


class Encoder(nn.Module):
    def __init__(self, width: int = 4, norm: nn.Module | None = None) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, width, bias=False), norm or nn.BatchNorm1d(width), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.layers(x)
        return output


class Scale:
    def __init__(self, by: float) -> None:
        self.by = by

    def __call__(self, x: Tensor) -> Tensor:
        return x * self.by


class Net(LightningModule):
    """Has an optimizer of its own."""

    def __init__(
        self,
        encoder: Encoder | None = None,
        lr: float = 0.1,
        width: int = 4,
        metrics: dict[str, Metric] | None = None,
        weights: tuple[float, float] = (1.0, 1.0),
        folder: Path = Path(),
    ) -> None:
        super().__init__()
        assert isinstance(weights, tuple)
        assert isinstance(folder, Path)
        self.lr = lr
        self.encoder = encoder or Encoder(width)
        self.head = nn.Linear(width, 2)
        self.metrics = nn.ModuleDict(metrics or {})
        self.scale = weights[0]

    def training_step(self, batch: list[Tensor], _index: int) -> Tensor:
        loss = nn.functional.cross_entropy(self.head(self.encoder(batch[0])) * self.scale, batch[1])
        self.log("loss", loss)
        return loss

    def validation_step(self, batch: list[Tensor], _index: int) -> None:
        output = self.head(self.encoder(batch[0]))
        self.log("val_loss", nn.functional.cross_entropy(output, batch[1]))
        for name, metric in self.metrics.items():
            assert isinstance(metric, Metric)
            metric(output, batch[1])
            self.log(f"val_{name}", metric, metric_attribute=f"metrics.{name}")

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.5)


class Bare(Net):
    """Leaves the optimizer to the configuration."""

    configure_optimizers = LightningModule.configure_optimizers


class GivenOptimizer(Net):
    """Gets a function that makes its optimizer."""

    def __init__(
        self, optimizer: Callable[[Iterable[Any]], Optimizer] = torch.optim.Adam, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.make = optimizer

    def configure_optimizers(self) -> Any:
        return self.make(self.parameters())


class Data(LightningDataModule):
    def __init__(self, batch_size: int = 4, samples: int = 22, transforms: list[Scale] | None = None) -> None:
        super().__init__()
        self.batch_size, self.samples, self.transforms = batch_size, samples, transforms or []

    def _loader(self, samples: int, seed: int) -> DataLoader[Any]:
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(samples, 3, generator=generator, dtype=torch.float64)
        y = (x.sum(1) > 0).long()
        for transform in self.transforms:
            x = transform(x)
        return DataLoader(TensorDataset(x, y), batch_size=self.batch_size)

    def train_dataloader(self) -> DataLoader[Any]:
        return self._loader(self.samples, 1)

    def val_dataloader(self) -> DataLoader[Any]:
        return self._loader(9, 2)


class OwnData(Net):
    """Has its loaders itself."""

    def train_dataloader(self) -> DataLoader[Any]:
        return Data().train_dataloader()

    def val_dataloader(self) -> DataLoader[Any]:
        return Data().val_dataloader()


class DrawnData(Data):
    """Scales its data by random numbers, one drawn by the constructor and one by `setup`."""

    def __init__(self, batch_size: int = 4) -> None:
        super().__init__(batch_size=batch_size, transforms=[Scale(1 + torch.rand(()).item())])

    def setup(self, stage: str) -> None:
        if stage == "fit":
            self.transforms.append(Scale(1 + torch.rand(()).item()))


class Decay(Callback):
    """A callback of the project's own. `layer`: draws its weights when it is constructed."""

    def __init__(self, by: float = 0.5, layer: nn.Module | None = None) -> None:
        self.by, self.layer = by, layer

    def on_train_epoch_end(self, trainer: Trainer, _module: LightningModule) -> None:
        for group in trainer.optimizers[0].param_groups:
            group["lr"] *= self.by
