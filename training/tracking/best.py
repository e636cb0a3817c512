"""The best values of a run's validation metrics."""

from __future__ import annotations

import math

from training.metric_names import Mode, best_mode
from training.tracking.tracker import History

VALIDATION = "val"
"""How the names of validation metrics begin: val_loss, val/loss, valid_loss."""


def best_points(history: History, *, monitor: str, mode: Mode) -> dict[str, tuple[int, float]]:
    """Returns the first best point (step, value) of `monitor` and of every validation metric by its name.

    mode: which value of `monitor` is the best. A metric without a finite value, or whose best value is not
    known from its name, is not among them.
    """
    modes = {name: best_mode(name) for name in history if name.startswith(VALIDATION)} | {monitor: mode}
    found = {}
    for name, wanted in modes.items():
        finite = [point for point in history.get(name, []) if math.isfinite(point[1])]
        if finite and wanted is not None:
            choose = min if wanted == "min" else max
            found[name] = choose(finite, key=lambda point: point[1])
    return found
