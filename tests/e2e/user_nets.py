"""What a user might upload; the tests send this file as `mine/nets.py`."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset


class Net(nn.Module):
    """A plain module; `fault` makes it misbehave at its `after`th batch of training."""

    def __init__(self, fault: str = "", after: int = 5) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU())
        self.suspect = nn.Identity()
        self.head = nn.Linear(32, 10)
        self.fault, self.after, self.seen = fault, after, 0

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.suspect(self.stem(x))
        if self.training:
            self.seen += 1
            if self.seen >= self.after and self.fault == "raise":
                raise RuntimeError("the user's own mistake")
            if self.seen >= self.after and self.fault == "nan":
                hidden = hidden * float("nan")
        output: Tensor = self.head(hidden)
        return output


class Regression(LightningModule):
    """A LightningModule with a task, a loss and names of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 1))

    def training_step(self, batch: list[Tensor], _index: int) -> Tensor:
        loss = F.mse_loss(self.net(batch[0]), batch[1])
        self.log("train_mse", loss)
        return loss

    def validation_step(self, batch: list[Tensor], _index: int) -> None:
        self.log("val_mse", F.mse_loss(self.net(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=0.02)


class Lines(LightningDataModule):
    """y = the sum of x, 96 samples to train on and 32 to validate."""

    def setup(self, stage: str | None = None) -> None:  # noqa: ARG002 (Lightning's signature)
        x = torch.randn(128, 4, generator=torch.Generator().manual_seed(0))
        self.data = TensorDataset(x, x.sum(1, keepdim=True))

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(TensorDataset(*self.data[:96]), shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(TensorDataset(*self.data[96:]))
