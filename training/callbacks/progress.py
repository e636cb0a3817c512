"""The callback that passes the run's progress to the tracker and the log, and the step to the logger."""

from __future__ import annotations

import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from training.callbacks.global_loss import GlobalLoss
from training.callbacks.job_step import job_step
from training.callbacks.logger import RunLogger
from training.console import say
from training.tracking.tracker import Eta, Tracker

SECONDS_BETWEEN_LINES = 5.0


class ProgressReporter(Callback):
    """Reports the run's progress to the tracker at every step, and to the log every few seconds."""

    def __init__(self, tracker: Tracker) -> None:
        self.tracker = tracker
        self._eta = Eta(None)
        self._last_line = 0.0

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        total = trainer.estimated_stepping_batches
        # In manual optimization `max_steps` counts the steps of all optimizers, and not batches.
        # Lightning says -1 for a stream without a length.
        known = 0 <= total < float("inf") and (module.automatic_optimization or trainer.max_steps == -1)
        self._eta = Eta(int(total) if known else None)

    def on_train_end(self, trainer: Trainer, _module: LightningModule) -> None:
        if self._eta.total_steps != job_step(trainer):  # unknown until now, or stopped early
            self._eta.total_steps = job_step(trainer)
            self._report(trainer)

    def on_train_batch_start(self, trainer: Trainer, _module: LightningModule, *_: Any) -> None:
        logger = _logger(trainer)
        logger.step = logger.current_step = job_step(trainer) + 1

    def on_train_batch_end(self, trainer: Trainer, _module: LightningModule, *_: Any) -> None:
        logger = _logger(trainer)
        logger.step = logger.current_step = job_step(trainer)
        logger.epoch = trainer.current_epoch
        self._report(trainer)

    def _report(self, trainer: Trainer) -> None:
        progress = self._eta.at(job_step(trainer), trainer.current_epoch)
        self.tracker.progress(progress)
        now = time.monotonic()
        done = progress.step == progress.total_steps
        if trainer.is_global_zero and (done or now - self._last_line >= SECONDS_BETWEEN_LINES):
            self._last_line = now
            metrics = _loss_of(trainer) | {name: float(v) for name, v in trainer.callback_metrics.items()}
            shown = " · ".join(f"{name} {value:.4g}" for name, value in sorted(metrics.items()))
            total = "" if progress.total_steps is None else f"/{progress.total_steps}"
            say(f"step {progress.step}{total} · epoch {progress.epoch} · {shown}")


def _logger(trainer: Trainer) -> RunLogger:
    return next(logger for logger in trainer.loggers if isinstance(logger, RunLogger))


def _loss_of(trainer: Trainer) -> dict[str, float]:
    """Returns `train_loss` over the global batch, which Lightning's own metrics lack."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    values = [callback.value for callback in callbacks if isinstance(callback, GlobalLoss)]
    return {"train_loss": values[0]} if values else {}
