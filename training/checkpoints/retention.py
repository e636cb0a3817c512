"""Which checkpoints a run keeps, and which one it goes on from. The same wherever they are."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Literal

from training.checkpoints.manifest import Saved, Torn

log = logging.getLogger(__name__)

Mode = Literal["min", "max"]
BROKEN_KEPT = 3
"""So many of those that were refused stay for a look."""


def comparable(metric: float | None) -> float | None:
    """NaN and infinities are no metric."""
    return metric if metric is not None and math.isfinite(metric) else None


def outdated(metrics: Mapping[str, float | None], *, keep_last: int, mode: Mode) -> list[str]:
    """All but the last `keep_last` and the one whose metric is the best. By name, the newest first."""
    measured = {name: metric for name, metric in metrics.items() if metric is not None}
    best = sorted(measured, key=measured.__getitem__, reverse=mode == "max")[:1]
    return [name for name in list(metrics)[keep_last:] if name not in best]


def newest_whole(
    newest_first: Iterable[str], read: Callable[[str], Saved], set_aside: Callable[[str], str]
) -> Saved | None:
    """The first that `read` does not find torn. A warning names each that was, and the one used instead.

    set_aside: makes sure that nobody reads it again, and says where it is kept.
    """
    found, refused = None, []
    for name in newest_first:
        try:
            found = read(name)
            break
        except Torn as fault:
            refused.append(f"{name} is not used: {fault}; it is kept as {set_aside(name)}")
    instead = f"the run goes on from {found.path.name}" if found else "the run starts from the beginning"
    for refusal in refused:
        log.warning("checkpoint %s; %s", refusal, instead)
    return found
