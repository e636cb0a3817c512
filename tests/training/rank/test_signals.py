from __future__ import annotations

import signal
from unittest.mock import patch

import pytest
import torch.distributed as dist
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop

from training.rank.signals import KeepSignals


@pytest.fixture
def trainer() -> Trainer:
    return Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)


def test_lightning_broadcasts_a_signal_before_each_batch_by_the_method_that_is_left_out(
    trainer: Trainer,
) -> None:
    with patch.object(dist, "broadcast") as broadcast:
        _TrainingEpochLoop._broadcast_sigterm_tensor(trainer.fit_loop.epoch_loop)
    assert broadcast.called

    KeepSignals().on_train_start(trainer, LightningModule())
    with patch.object(dist, "broadcast") as broadcast:
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor()
    assert not broadcast.called


def test_the_handler_of_the_process_is_there_again_once_training_starts(trainer: Trainer) -> None:
    before = signal.getsignal(signal.SIGTERM)
    keep = KeepSignals()
    try:
        signal.signal(signal.SIGTERM, lambda *_: None)  # Lightning's
        keep.on_train_start(trainer, LightningModule())

        assert signal.getsignal(signal.SIGTERM) is before
    finally:
        signal.signal(signal.SIGTERM, before)
