"""What a finished run saves: the model, the SHA-256 of its weights, figures and the best values."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path
from typing import Any

from torch import nn

from training.model import export
from training.model.weights import weights_sha256
from training.rank.trainer import RunParts
from training.spec import Spec
from training.tracking.best import VALIDATION, best_points

log = logging.getLogger(__name__)


def save_results(module: Any, spec: Spec, parts: RunParts, step: int, output: str | None) -> str | None:
    """Saves the model and the figures, and returns the SHA-256 of the weights in model.pt. Rank 0 only.

    step: the last one. output: the folder for model.pt and the figures; None: only the tracker gets them.
    Returns None for weights that have none.
    """
    tracker, checkpoint = parts.tracker, spec.training.checkpoint
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(output or temporary)
        model = export.save(module, folder / "model.pt")
        digest = _digest(export.of_user(module) if model is None else model)
        if digest is not None:
            tracker.tags({"weights.sha256": digest})
        history = tracker.history((*export.CURVES, VALIDATION, checkpoint.monitor))
        tracker.best(best_points(history, monitor=checkpoint.monitor, mode=checkpoint.mode))
        export.draw_curves(history, folder / "curves.png")
        for figure in [folder / "curves.png", *parts.norm_report.draw(folder)]:
            tracker.artifact(figure)
    if model is not None:
        tracker.model(model, parts.share.example, step)
    return digest


def _digest(model: nn.Module) -> str | None:
    """Returns the SHA-256 of the model's weights and buffers; None if it cannot be computed."""
    try:
        return weights_sha256(model.state_dict())
    except Exception as error:  # a sparse buffer, or anything else that a user keeps
        log.warning("the weights have no sha256 (%s: %s)", type(error).__name__, error)
        return None
