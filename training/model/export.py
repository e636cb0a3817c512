"""The trained model as something that torch alone can load, and the figure of its curves."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from sync_bn import revert_sync_batchnorm
from training.model.supervised import Supervised
from training.tracking.tracker import History

log = logging.getLogger(__name__)

CURVES = ("train_", "val_", "test_")
"""How the names of the metrics begin that have a place in the figure of curves."""


def exportable(module: nn.Module) -> nn.Module:
    """A copy on the CPU in evaluation mode, with plain BatchNorm, that unpickles without this project.

    Where torch.fx can trace the model, the copy is a GraphModule: its code travels with it, its modules and
    state_dict keep their names. Otherwise it is the model itself, whose class must then be importable.
    """
    model = module.model if isinstance(module, Supervised) else module
    model = revert_sync_batchnorm(copy.deepcopy(model)).cpu().eval()
    if all(type(layer).__module__.startswith("torch.") for layer in model.modules()):
        return model
    try:
        return _traced(model)
    except Exception as error:  # control flow that depends on data, or whatever a user's forward does
        log.warning("the model is saved as its class (%s), which whoever loads it must have", error)
        return model


def _traced(model: nn.Module) -> fx.GraphModule:
    traced = fx.symbolic_trace(model)
    for node in traced.graph.nodes:
        node.type = None  # annotations may be strings, or classes that are not there when it is loaded
    traced.recompile()
    return traced


def save(model: nn.Module, path: Path) -> None:
    """Writes the whole model; `torch.load(path, weights_only=False)` gives it back."""
    torch.save(model, path)


def example_input(batch: Any) -> Tensor | None:
    """One sample of the batch's input, for the model's signature; None for batches of another kind."""
    if isinstance(batch, list | tuple) and len(batch) and isinstance(batch[0], Tensor):
        return batch[0][:1].cpu()
    return None


def draw_curves(history: History, path: Path) -> None:
    """Loss and every other metric against the optimizer's step, as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = _panels({name: points for name, points in history.items() if points})
    columns = max(len(panels), 1)
    figure = Figure(figsize=(6.4 * columns, 4.2))
    FigureCanvasAgg(figure)
    # Fixed: a layout that measures all text takes as long again as drawing.
    margins = {"left": 0.1 / columns, "right": 1 - 0.03 / columns, "bottom": 0.12, "top": 0.92}
    axes_of_panels = figure.subplots(1, columns, squeeze=False, gridspec_kw=margins)[0]
    for axes, (title, names) in zip(axes_of_panels, panels.items(), strict=False):
        for name in names:
            _draw(axes, name, history[name])
        axes.set(title=title, xlabel="step")
        axes.grid(alpha=0.3)
        axes.legend()
        if title == "loss" and all(value > 0 for name in names for _, value in history[name]):
            axes.set_yscale("log")
    figure.savefig(path, dpi=110)


def _panels(history: Mapping[str, Any]) -> dict[str, list[str]]:
    """train_loss, val_loss and test_loss share the panel `loss`; and so for every metric."""
    panels: dict[str, list[str]] = {}
    for name in sorted(history, key=lambda name: (not name.endswith("loss"), name)):
        _, _, metric = name.partition("_")
        if name.startswith(CURVES) and metric:
            panels.setdefault(metric, []).append(name)
    return panels


def _draw(axes: Any, name: str, points: list[tuple[int, float]]) -> None:
    steps, values = zip(*points, strict=True)
    if len(points) == 1:
        axes.plot(steps, values, marker="*", markersize=12, linestyle="none", label=f"{name} {values[0]:.4g}")
    else:
        axes.plot(steps, values, linewidth=1.2, marker="." if len(points) < 50 else None, label=name)
