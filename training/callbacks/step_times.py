"""The callback with which `syncbn advise` and `syncbn verify --bits` measure steps."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from statistics import median
from typing import Any

from lightning.pytorch import Callback, Trainer

METRIC = "step_seconds"


class StepTimes(Callback):
    """Logs `step_seconds`, of rank 0: from one batch's end to the next one's, loading included."""

    def __init__(self) -> None:
        self._ended: float | None = None

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        now = time.perf_counter()
        if self._ended is not None and trainer.is_global_zero:
            for logger in trainer.loggers:
                logger.log_metrics({METRIC: now - self._ended}, trainer.global_step)
        self._ended = now


def median_seconds(rows: Iterable[Mapping[str, float]]) -> float:
    """Returns the median time of a step, without the first third, in which memory is allocated.

    rows: the lines of metrics.jsonl. At least two must be of steps.
    """
    times = [row[METRIC] for row in rows if METRIC in row]
    return median(times[len(times) // 3 :])
