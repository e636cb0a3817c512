"""Where a run goes on from a checkpoint: the state of Lightning's loops in it, set to just before a batch.

Lightning has other states between two batches, between two epochs and after the last one, and goes on from
each in its own way. Here a run always goes on just before it trains on a batch, or just before an epoch.
"""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Trainer

from training import internals
from training.callbacks.own_checkpoints import OUR_LOADERS
from training.loading.combined import states_at


def before_fetched_batch(lightning: dict[str, Any], trainer: Trainer, batch_idx: int) -> None:
    """Rewinds the loops' state by one batch: Lightning has fetched the next one and would count it done."""
    fit_loop = lightning["loops"]["fit_loop"]
    fit_loop["epoch_loop.batch_progress"]["is_last_batch"] = False
    fit_loop["state_dict"][OUR_LOADERS] = states_at(
        *internals.loaders_to_train_on(trainer), epoch=trainer.current_epoch, number=batch_idx
    )


def before_next_batch(lightning: dict[str, Any], trainer: Trainer) -> None:
    """Sets the loops' state, of a run that ends within an epoch, to what it would be before another batch."""
    batches = lightning["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    for counts in (batches["current"], batches["total"]):
        counts["ready"] += 1
    before_fetched_batch(lightning, trainer, batches["current"]["completed"])


def before_next_epoch(lightning: dict[str, Any], trainer: Trainer) -> None:
    """Sets the loops' state, of a run that ends with an epoch, to what it would be before another epoch."""
    fit_loop = lightning["loops"]["fit_loop"]
    epochs = fit_loop["epoch_progress"]
    for counts in (epochs["current"], epochs["total"]):
        counts["ready"] = counts["started"] + 1  # Lightning then calls on_train_epoch_start
    for key in ("batch_progress", "scheduler_progress", "automatic_optimization.optim_progress"):
        _reset_current(fit_loop[f"epoch_loop.{key}"])
    _reset(fit_loop["epoch_loop.val_loop.batch_progress"]["total"])
    fit_loop["epoch_loop.batch_progress"]["total"]["ready"] += 1
    before_fetched_batch(lightning, trainer, 0)


def _reset_current(progress: dict[str, Any]) -> None:
    for key, value in progress.items():
        if key == "current":
            _reset(value)
        elif isinstance(value, dict):
            _reset_current(value)


def _reset(counts: dict[str, int]) -> None:
    for key in counts:
        counts[key] = 0
