"""What a user might upload; the tests send this file as `mine/nets.py`."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import psutil
import torch
import torch.distributed as dist
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset


class Net(nn.Module):
    """A plain module that raises an error at its `after`th batch of training."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU())
        self.head = nn.Linear(32, 10)
        self.after, self.seen = after, 0

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.seen += 1
            if self.seen >= self.after:
                raise RuntimeError("the user's own mistake")
        output: Tensor = self.head(self.stem(x))
        return output


class Scaled(nn.Module):
    """Has an argument that is as long as a table; its sum must come to `total`."""

    def __init__(self, table: list[float], total: float) -> None:
        super().__init__()
        assert sum(table) == total
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.Linear(16, 10))

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.net(x)
        return output


class Struck(nn.Module):
    """Kills a process at some steps, each once: of these ranks their own, or their host agent.

    strikes: by step, counted from 1 over the whole run, "0", "1", "agent", or "sleep" on rank 1.
    pace: seconds that a step takes at least.
    """

    def __init__(self, folder: str, strikes: dict[str, str], pace: float = 0.0) -> None:
        super().__init__()
        self.folder, self.strikes, self.pace = Path(folder), strikes, pace
        self.net = nn.Sequential(
            nn.Conv2d(1, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10)
        )
        self.steps: Tensor
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.steps += 1
            self._strike(str(int(self.steps)))
            time.sleep(self.pace)
        output: Tensor = self.net(x)
        return output

    def _strike(self, step: str) -> None:
        rank, whom = dist.get_rank(), self.strikes.get(step)
        responsible = {"0": 0, "agent": 0, "1": 1, "sleep": 1}
        done = self.folder / f"{step}-{whom}"
        if whom is None or rank != responsible[whom] or done.exists():
            return
        done.touch()
        if whom == "sleep":
            time.sleep(10_000)
        os.kill(_agent() if whom == "agent" else os.getpid(), signal.SIGKILL)
        time.sleep(60)


def _agent() -> int:
    """The process of the host agent: that of Ray's, above the fork server and the supervisor."""
    for process in psutil.Process().parents():
        if "HostAgent" in " ".join(process.cmdline()):
            return process.pid
    raise AssertionError("no host agent")


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
