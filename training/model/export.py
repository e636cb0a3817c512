"""Export of the trained model so that torch alone can load it, and the figure of the run's curves."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from training.model.supervised import Supervised
from training.normalisation.plain import with_torchs_layers
from training.tracking.tracker import History

log = logging.getLogger(__name__)

CURVES = ("train_", "val_", "test_")
"""Name prefixes of the metrics that the figure of curves shows."""


def of_user(module: nn.Module) -> nn.Module:
    """Returns the user's own module: without the loss and the metrics that a spec gives to an nn.Module."""
    return module.model if isinstance(module, Supervised) else module


def exportable(module: nn.Module) -> nn.Module:
    """Returns a copy on the CPU in evaluation mode, with plain BatchNorm, that loads without this project.

    A model of torch's own layers only is copied as it is. Any other model becomes a GraphModule if torch.fx
    can trace it: that contains its own code, and keeps the names of modules and state_dict. If tracing fails,
    the copy has the model's own class, which must be importable where it is loaded.
    """
    model = with_torchs_layers(copy.deepcopy(of_user(module))).cpu().eval()
    if all(type(layer).__module__.startswith("torch.") for layer in model.modules()):
        return model
    try:
        return _trace(model)
    except Exception as error:  # data-dependent control flow, or anything else in a user's forward
        why = str(error).partition(". ")[0].partition("\n")[0]
        log.warning("the model is saved as its class, which must be importable to load it (%s)", why)
        return model


def _trace(model: nn.Module) -> fx.GraphModule:
    traced = fx.symbolic_trace(model)
    for node in traced.graph.nodes:
        node.type = None  # annotations may be strings, or classes that cannot be imported on loading
    traced.recompile()
    return traced


def save(module: nn.Module, path: Path) -> nn.Module | None:
    """Writes the exportable model, and returns it; load it with `torch.load(path, weights_only=False)`.

    A module that cannot be copied or pickled is saved as the state_dict of `of_user`; then returns None.
    """
    try:
        model = exportable(module)
        torch.save(model, path)
    except Exception as error:  # a tensor with a graph, a parametrization, or anything else that a user keeps
        log.warning(
            "the module cannot be saved as a whole (%s: %s), so model.pt holds its state_dict, and MLflow "
            "gets no model",
            *(type(error).__name__, error),
        )
        torch.save(of_user(module).state_dict(), path)
        return None
    return model


def example_input(batch: Any) -> Tensor | None:
    """Returns one sample of the batch's input for the model's signature; None unless batch[0] is a Tensor."""
    first = batch[0] if isinstance(batch, list | tuple) and len(batch) else None
    if isinstance(first, Tensor) and first.ndim and first.layout == torch.strided:
        return first[:1].detach().cpu().clone()
    return None


def draw_curves(history: History, path: Path) -> None:
    """Draws the loss and all other metrics against the optimizer step, as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter

    panels = _panels({name: points for name, points in history.items() if points})
    columns = max(len(panels), 1)
    figure = Figure(figsize=(6.4 * columns, 4.2))
    FigureCanvasAgg(figure)
    # Fixed margins and positions, plain numbers: to measure all text takes most of the time.
    margins = {"left": 0.1 / columns, "right": 1 - 0.03 / columns, "bottom": 0.12, "top": 0.92}
    axes_of_panels = figure.subplots(1, columns, squeeze=False, gridspec_kw=margins)[0]
    for axes, (title, names) in zip(axes_of_panels, panels.items(), strict=False):
        for name in names:
            _draw(axes, name, history[name])
        axes.set_title(title, y=1.0)
        axes.set_xlabel("step")
        axes.xaxis.set_label_coords(0.5, -0.075)
        axes.grid(alpha=0.3)
        axes.legend()
        values = [value for name in names for _, value in history[name]]
        if title == "loss" and all(value > 0 for value in values):  # False for NaN
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter("{x:g}" if max(values) < 10 * min(values) else NullFormatter())
    figure.savefig(path, dpi=110)


def _panels(history: Mapping[str, Any]) -> dict[str, list[str]]:
    """Groups metrics by panel: train_loss, val_loss and test_loss share the panel `loss`, and so on."""
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
