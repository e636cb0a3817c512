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
    measured = {name: metric for name, metric in metrics.items() if metric is not None}
    best = sorted(measured, key=measured.__getitem__, reverse=mode == "max")[:1]
    return [name for name in list(metrics)[keep_last:] if name not in best]


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
