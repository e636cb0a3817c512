from __future__ import annotations

import signal

import pytest
from lightning.pytorch import LightningModule, Trainer

from training.rank.signals import KeepSignals


@pytest.fixture
def trainer() -> Trainer:
    return Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)


def test_the_handler_of_the_process_is_there_again_once_training_starts(trainer: Trainer) -> None:
    before = signal.getsignal(signal.SIGTERM)
    keep = KeepSignals()
    try:
        signal.signal(signal.SIGTERM, lambda *_: None)  # Lightning's
        keep.on_train_start(trainer, LightningModule())

        assert signal.getsignal(signal.SIGTERM) is before
    finally:
        signal.signal(signal.SIGTERM, before)
