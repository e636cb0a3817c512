"""Checkpoints through Ray Train's storage, at the ends of epochs."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import ray.train
import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer

FILE = "checkpoint.ckpt"
SECONDS_BETWEEN = 10.0


class EpochCheckpoint(Callback):
    """Reports a checkpoint to Ray Train after an epoch, if the last one is older than SECONDS_BETWEEN."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def on_train_epoch_end(self, trainer: Trainer, _module: LightningModule) -> None:
        if self._is_due(trainer):
            report_checkpoint(trainer)
            self._last = time.monotonic()

    def _is_due(self, trainer: Trainer) -> bool:
        # Every rank asks, rank 0's clock decides: `report` waits for all of them.
        due = torch.tensor(
            [float(time.monotonic() - self._last >= SECONDS_BETWEEN)], device=trainer.strategy.root_device
        )
        dist.broadcast(due, 0)
        return bool(due)


def report_checkpoint(trainer: Trainer) -> None:
    """Saves model, optimizer, schedulers and loops; every rank calls it."""
    with tempfile.TemporaryDirectory() as folder:
        trainer.save_checkpoint(Path(folder) / FILE)  # writes on rank 0
        mine = ray.train.Checkpoint.from_directory(folder) if trainer.is_global_zero else None
        ray.train.report({"step": trainer.global_step}, checkpoint=mine)
