"""Attempts at a run without a host agent: the same code on every rank, in a group that is there already."""

from __future__ import annotations

import io
import json
import logging
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, replace
from multiprocessing import current_process, set_start_method
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from training.protocol import Exit, Order, RankAssignment
from training.rank.context import RankContext
from training.rank.rank import RankRun
from training.rank.reports import Reports
from training.rank.strategy import GroupEnvironment

STOP_AFTER = "STOP_AFTER_STEP"
"""Environment variable: the model asks for a stop in this step, counted over the attempt."""


def stop_if_asked(step: int) -> None:
    """Asks for a stop in the step that `attempt` was told. step: from 1."""
    after, _, path = os.environ.get(STOP_AFTER, "").partition(":")
    if after and step >= int(after):
        Path(path).touch()


class Net(nn.Module):
    """A small network with normalisation; `noise` adds dropout."""

    def __init__(self, noise: float = 0.0) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 6, 3, padding=1, bias=False),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.Conv2d(6, 8, 3, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Dropout(noise),
            nn.Flatten(),
            nn.Linear(8 * 16, 3),
        )
        self.steps = 0

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.steps += 1
            stop_if_asked(self.steps)
        output: Tensor = self.layers(x)
        return output


class Logs(LightningModule):
    """A user's own module that logs in every way there is. Validation has shares without a sample."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Net()

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        x, y = batch
        loss = nn.functional.cross_entropy(self.net(x), y)
        self.log("plain", loss)
        self.log("both", loss, on_epoch=True)
        self.log("mean", loss, on_step=False, on_epoch=True)
        self.log("counted", loss.float(), on_step=False, on_epoch=True, batch_size=len(x))
        largest = x.amax() if len(x) else x.sum()
        self.log("largest", largest, on_step=False, on_epoch=True, reduce_fx="max")
        self.log("samples", float(len(x)), on_step=False, on_epoch=True, reduce_fx=torch.sum)
        if index % 5 == 4:
            self.log("seldom", loss, on_step=False, on_epoch=True)
        return loss

    def on_train_epoch_end(self) -> None:
        self.log("end", 3.0)

    def validation_step(self, batch: tuple[Tensor, Tensor], _index: int) -> None:
        x, y = batch
        self.log_dict({"val_loss": nn.functional.cross_entropy(self.net(x), y)})

    def test_step(self, batch: tuple[Tensor, Tensor], _index: int) -> None:  # noqa: PT019 (no test)
        self.log("test_size", float(len(batch[0])), reduce_fx="sum")

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.05)


class Data(LightningDataModule):
    """`train` samples to train on, 11 to validate and 5 to test on, in the dtype `dtype`."""

    def __init__(self, train: int = 150, dtype: str = "float64") -> None:
        super().__init__()
        self.train, self.dtype = train, getattr(torch, dtype)

    def _loader(self, number: int, seed: int, *, shuffle: bool = False) -> DataLoader[Any]:
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(number, 1, 6, 6, generator=generator, dtype=torch.float64)
        y = (x.mean((1, 2, 3)) > 0).long() + (x[:, 0, 0, 0] > 1).long()
        return DataLoader(TensorDataset(x.to(self.dtype), y), shuffle=shuffle)

    def train_dataloader(self) -> DataLoader[Any]:
        return self._loader(self.train, 1, shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        return self._loader(11, 2)

    def test_dataloader(self) -> DataLoader[Any]:
        return self._loader(5, 3)


def spec_of(
    *, samples: int = 150, noise: float = 0.0, precision: str = "64-true", **training: Any
) -> dict[str, Any]:
    """A spec as a user writes it. SGD with momentum and a schedule by steps, unless said otherwise."""
    return {
        "model": {"class_path": "tests.training.attempts.Net", "init_args": {"noise": noise}},
        "data": {
            "class_path": "tests.training.attempts.Data",
            "init_args": {"train": samples, "dtype": "float64" if precision == "64-true" else "float32"},
        },
        "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.05, "momentum": 0.9}},
        "lr_scheduler": {
            "class_path": "torch.optim.lr_scheduler.ExponentialLR",
            "init_args": {"gamma": 0.9},
        },
        "training": {"global_batch_size": 7, "precision": precision, "max_epochs": 2} | training,
    }


@dataclass(frozen=True, kw_only=True)
class Done:
    """What an attempt left on this rank. `rows` are the lines of metrics.jsonl, `said` its log."""

    rows: list[dict[str, Any]]
    weights_sha256: str | None
    state: Mapping[str, Tensor]
    stopped: bool
    said: str
    calls: Sequence[str]

    def series(self, name: str) -> dict[int, float]:
        return {row["step"]: row[name] for row in self.rows if name in row}


def rank_run(
    rank: int,
    spec: Mapping[str, Any],
    folder: Path,
    *,
    checkpoints_url: str | None = None,
    start_from: str | None = None,
    keep_results: bool = True,
) -> RankRun:
    """This rank's part of a run in `folder`, to be trained in the group that there is: `train_in`."""
    assignment = RankAssignment(rank=rank, local_rank=0 if rank == 0 else 1, node_rank=rank)
    order = Order(
        attempt="run-1",
        spec=dict(spec),
        ranks=(assignment,),
        world_size=dist.get_world_size(),
        folder=str(folder / "run"),
        checkpoints=checkpoints_url,
        start_from=start_from,
        output=str(folder) if keep_results else None,
    )
    nobody, channel = socket.socketpair()
    nobody.close()
    return RankRun(order, assignment, Reports(channel, rank, step=lambda _: None))


def context(assignment: RankAssignment) -> RankContext:
    return RankContext(
        rank=assignment.rank,
        world_size=dist.get_world_size(),
        local_rank=assignment.local_rank,
        node_rank=assignment.node_rank,
        environment=lambda: GroupEnvironment(replace(assignment, local_rank=0, node_rank=assignment.rank)),
    )


def attempt(
    rank: int,
    spec: Mapping[str, Any],
    folder: Path,
    *,
    stop_after: int | None = None,
    checkpoints_url: str | None = None,
    start_from: str | None = None,
) -> Done:
    """One attempt at the run in `folder`, going on from its last checkpoint if there is one.

    Without the figure of its curves (test_export), which would take a third of the time of a small run.
    """
    current_process().daemon = False  # so that a loader may have processes, which end with it
    set_start_method(None, force=True)  # as in the process of a rank
    own = rank_run(rank, spec, folder, checkpoints_url=checkpoints_url, start_from=start_from)
    own.folder.stop_request.parent.mkdir(parents=True, exist_ok=True)
    os.environ[STOP_AFTER] = f"{stop_after}:{own.folder.stop_request}" if stop_after else ""
    dist.barrier()
    if rank == 0:
        own.folder.stop_request.unlink(missing_ok=True)
    dist.barrier()
    with _heard() as said, patch("training.model.export.draw_curves"):
        ended = own.train_in(context(own.assignment))
    dist.barrier()
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    state = {name: value.clone() for name, value in own.trainer.lightning_module.state_dict().items()}
    calls = list(getattr(own.trainer.lightning_module, "calls", ()))
    return Done(
        rows=rows,
        weights_sha256=own.weights_sha256,
        state=state,
        stopped=ended is Exit.STOPPED,
        said=said.getvalue(),
        calls=calls,
    )


@contextmanager
def _heard() -> Iterator[io.StringIO]:
    """What is printed, and the warnings of this project."""
    text = io.StringIO()
    handler = logging.StreamHandler(text)
    logging.getLogger("training").addHandler(handler)
    try:
        with redirect_stdout(text):
            yield text
    finally:
        logging.getLogger("training").removeHandler(handler)
