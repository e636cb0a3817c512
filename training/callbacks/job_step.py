"""The step of a job, by which its metrics, checkpoints and progress are counted."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Trainer


def job_step(trainer: Trainer) -> int:
    """Returns the number of optimizer steps so far; in manual optimization, of batches trained on.

    A module with manual optimization may step several optimizers for a batch, or none for several batches;
    Lightning's `global_step` counts all of them.
    """
    module = trainer.lightning_module
    if module is None or module.automatic_optimization:
        return trainer.global_step
    batches: Any = trainer.fit_loop.epoch_loop.batch_progress.total
    return int(batches.processed)
