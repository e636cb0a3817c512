"""The rules of which checkpoints a run keeps and which one it resumes from, the same for every store."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Literal

from training.checkpoints.manifest import InvalidCheckpoint, Saved

log = logging.getLogger(__name__)

Mode = Literal["min", "max"]
BROKEN_KEPT = 3
"""Number of invalid checkpoints that are kept for inspection."""


def comparable(metric: float | None) -> float | None:
    """Returns the metric, or None if it is NaN or infinite."""
    return metric if metric is not None and math.isfinite(metric) else None


def outdated(metrics: Mapping[str, float | None], *, keep_last: int, mode: Mode) -> list[str]:
    """Returns the names of all checkpoints except the last `keep_last` and the one with the best metric.

    metrics: of all checkpoints by name, the newest first.
    """
    best = best_of(metrics, mode)
    return [name for name in list(metrics)[keep_last:] if name != best]


def best_of(metrics: Mapping[str, float | None], mode: Mode) -> str | None:
    """Returns the name with the best metric, the first of equals; None if there is no metric."""
    measured = {name: metric for name, metric in metrics.items() if metric is not None}
    return next(iter(sorted(measured, key=measured.__getitem__, reverse=mode == "max")), None)


def is_better(metric: float | None, best: float | None, mode: Mode) -> bool:
    """Returns whether a metric is better than the best one so far; None: there is none."""
    if metric is None or best is None:
        return metric is not None
    return metric < best if mode == "min" else metric > best


def newest_valid(
    newest_first: Iterable[str], read: Callable[[str], Saved], set_aside: Callable[[str], str]
) -> Saved | None:
    """Returns the newest valid checkpoint, None if there is none; logs a warning for each invalid one.

    read: raises InvalidCheckpoint. set_aside: renames an invalid checkpoint so that it is not read again,
    and returns where it is kept.
    """
    valid, refused = None, []
    for name in newest_first:
        try:
            valid = read(name)
            break
        except InvalidCheckpoint as fault:
            refused.append(f"{name} is not used: {fault}; it is kept as {set_aside(name)}")
    instead = f"the run resumes from {valid.path.name}" if valid else "the run starts from the beginning"
    for refusal in refused:
        log.warning("checkpoint %s; %s", refusal, instead)
    return valid
