"""The callback that reports a rank's progress in Lightning's hooks to the watchdog."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from training.callbacks.job_step import job_step
from training.hangs.watchdog import Watchdog


class Heartbeat(Callback):
    """Reports progress in every hook. Must be the first callback, so that time spent in the others counts
    as spent after this hook.

    prepared: called when the data are ready and the first batch is about to be requested.
    """

    def __init__(self, watchdog: Watchdog, prepared: Callable[[], None]) -> None:
        self._watchdog, self._prepared = watchdog, prepared

    def on_fit_start(self, trainer: Trainer, _module: LightningModule) -> None:
        self._watchdog.progress(job_step(trainer), "setting up the training")

    def on_train_start(self, *_: Any) -> None:
        self._prepared()

    def on_test_start(self, *_: Any) -> None:
        self._prepared()

    def on_train_epoch_start(self, trainer: Trainer, _module: LightningModule) -> None:
        self._at_epoch(trainer, "the start")

    def on_train_batch_start(
        self, trainer: Trainer, _module: LightningModule, _batch: Any, batch_idx: int
    ) -> None:
        self._at_batch(trainer, "forward pass of train batch", batch_idx)

    def on_before_backward(self, trainer: Trainer, _module: LightningModule, _loss: Any) -> None:
        self._at_batch(trainer, "backward pass of train batch", trainer.fit_loop.batch_idx)

    def on_before_optimizer_step(self, trainer: Trainer, _module: LightningModule, _optimizer: Any) -> None:
        self._at_batch(trainer, "optimizer step of train batch", trainer.fit_loop.batch_idx)

    def on_train_batch_end(
        self, trainer: Trainer, _module: LightningModule, _outputs: Any, _batch: Any, batch_idx: int
    ) -> None:
        self._watchdog.warmed_up()
        self._at_batch(trainer, "waiting for data or callbacks, after train batch", batch_idx, done=True)

    def on_train_epoch_end(self, trainer: Trainer, _module: LightningModule) -> None:
        self._at_epoch(trainer, "the end")

    def on_validation_epoch_start(self, trainer: Trainer, _module: LightningModule) -> None:
        self._watchdog.progress(job_step(trainer), f"start of validation in epoch {trainer.current_epoch}")

    def on_validation_batch_start(
        self, trainer: Trainer, _module: LightningModule, _batch: Any, batch_idx: int, _loader: int = 0
    ) -> None:
        self._at_batch(trainer, "validation batch", batch_idx, done=True)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        _module: LightningModule,
        _outputs: Any,
        _batch: Any,
        batch_idx: int,
        _loader: int = 0,
    ) -> None:
        self._at_batch(trainer, "waiting for data, after validation batch", batch_idx, done=True)

    def on_validation_epoch_end(self, trainer: Trainer, _module: LightningModule) -> None:
        self._watchdog.progress(job_step(trainer), f"end of validation in epoch {trainer.current_epoch}")

    def on_test_batch_start(
        self, trainer: Trainer, _module: LightningModule, _batch: Any, batch_idx: int, _loader: int = 0
    ) -> None:
        self._watchdog.progress(job_step(trainer), f"test batch {batch_idx}")

    def on_test_batch_end(
        self,
        trainer: Trainer,
        _module: LightningModule,
        _outputs: Any,
        _batch: Any,
        batch_idx: int,
        _loader: int = 0,
    ) -> None:
        self._watchdog.progress(job_step(trainer), f"waiting for data, after test batch {batch_idx}")

    def on_test_epoch_end(self, trainer: Trainer, _module: LightningModule) -> None:
        self._watchdog.progress(job_step(trainer), "end of the test")

    def on_save_checkpoint(self, trainer: Trainer, _module: LightningModule, _checkpoint: Any) -> None:
        self._watchdog.progress(job_step(trainer), "saving a checkpoint")

    def on_fit_end(self, trainer: Trainer, _module: LightningModule) -> None:
        self._watchdog.progress(job_step(trainer), "after the last epoch")

    def _at_batch(self, trainer: Trainer, doing: str, batch: int, *, done: bool = False) -> None:
        """Reports progress at the current step; at the last completed one if `done`."""
        step = job_step(trainer) + (not done)
        self._watchdog.progress(step, f"{doing} {batch} of epoch {trainer.current_epoch}")

    def _at_epoch(self, trainer: Trainer, end: str) -> None:
        self._watchdog.progress(job_step(trainer), f"{end} of epoch {trainer.current_epoch}")
