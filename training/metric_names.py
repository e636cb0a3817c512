"""What the name of a metric says: which value is the best, its place among others, whether it is a detail."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal

Mode = Literal["min", "max"]

_WORDS = re.compile(r"[A-Z]+\d*(?![a-z])|[A-Z]?[a-z]+\d*|\d+")
_LOWEST = re.compile(r"loss|err(or)?|mae|r?mse|mape|nll|perplexity|[wc]er")
_HIGHEST = re.compile(
    r"acc(uracy)?|f1|auc|auroc|auprc|map|precision|recall|m?iou|jaccard|dice|kappa|specificity|sensitivity|r2"
    r"|psnr|ssim"
)
_SUFFIX = re.compile(r"epoch|step|dataloader|idx|index|score|mean|macro|micro|\d+")
"""Words behind the one that counts, as in val_loss_epoch or val_loss/dataloader_idx_0."""


def best_mode(metric: str) -> Mode | None:
    """Returns whether the lowest ("min") or the highest ("max") value is the best; None: unknown.

    >>> best_mode("val_loss"), best_mode("val_F1Score"), best_mode("learning_rate")
    ('min', 'max', None)
    """
    words = [word.lower() for word in _WORDS.findall(metric)]
    while words and _SUFFIX.fullmatch(words[-1]):
        words.pop()
    last = words[-1] if words else ""
    if _LOWEST.fullmatch(last):
        return "min"
    return "max" if _HIGHEST.fullmatch(last) else None


def display_order(metric: str) -> tuple[int, str]:
    """Returns a sort key for metrics: test, validation, training, others, the learning rate; then by name."""
    if metric == "learning_rate":
        return 4, metric
    stage = next((i for i, prefix in enumerate(("test_", "val_", "train_")) if metric.startswith(prefix)), 3)
    return stage, metric


def main_metric(metrics: Iterable[str], monitor: str | None) -> str | None:
    """Returns the metric to show where there is room for one; None if there are only details.

    monitor: the one that chooses the best checkpoint, which it is if it is among them.

    >>> main_metric(["train_loss", "val_accuracy", "val_loss"], "val_loss")
    'val_loss'
    >>> main_metric(["learning_rate", "train_loss", "val_accuracy", "norm/bn1/mean_noise"], "val_loss")
    'val_accuracy'
    """
    names = [name for name in metrics if not is_detail(name)]
    return monitor if monitor in names else min(names, key=display_order, default=None)


def is_detail(metric: str) -> bool:
    """Whether a metric is shown only on request: those of machines and of single layers."""
    return metric.startswith("system/") or is_layer_detail(metric)


def is_layer_detail(metric: str) -> bool:
    """Whether a metric is `norm/LAYER/MEASURE`, of a single layer (training.callbacks.norm_report)."""
    return metric.startswith("norm/")
