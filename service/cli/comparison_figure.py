"""A comparison of jobs as a picture: a panel for each metric, a line for each group of jobs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from service.cli.output import clean

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from service.cli.comparison import Comparison, Group

_COLUMNS = 2
_NAMED = 12  # lines in the legend
_LONGEST = 60  # characters of a line's name


def draw(comparison: Comparison, path: Path) -> None:
    """Draws the curves into a new file, a PNG or an SVG by its suffix. Raises OSError."""
    labels = {group.number: _label(comparison, group) for group in comparison.groups}
    figure_of(comparison, labels).savefig(path, dpi=110)


def figure_of(comparison: Comparison, labels: Mapping[int, str]) -> Figure:
    """Returns the figure. labels: what distinguishes each group, by its number."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    columns = min(_COLUMNS, len(comparison.metrics)) or 1
    rows = math.ceil(len(comparison.metrics) / columns) or 1
    height = 4.2 * rows + 0.1 * min(len(comparison.groups), _NAMED)
    figure = Figure(figsize=(6.4 * columns, height), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    few = len(comparison.groups) <= 10
    colours = colormaps["tab10" if few else "viridis"].resampled(10 if few else len(comparison.groups))
    for panel, metric in zip(panels, comparison.metrics, strict=False):
        panel.set(title=plain(metric), xlabel="step")
        panel.grid(alpha=0.3)
        for place, group in enumerate(comparison.groups):
            label = f"{group.number}  {_shortened(labels[group.number])}"
            _draw(panel, group, metric, colour=colours(place), label=label)
    for panel in panels[len(comparison.metrics) :]:
        panel.set_visible(False)
    _add_legend(figure)
    return figure


def _draw(panel: Any, group: Group, metric: str, *, colour: Any, label: str) -> None:
    curve = [(step, spread.mean or 0.0, spread.deviation or 0.0) for step, spread in group.curve(metric)]
    steps, means, deviations = zip(*curve, strict=True) if curve else ((), (), ())
    panel.plot(steps, means, color=colour, label=label, marker="o" if len(steps) == 1 else "")
    if any(deviations):
        lowest, highest = ([mean + sign * d for _, mean, d in curve] for sign in (-1, 1))
        panel.fill_between(steps, lowest, highest, color=colour, alpha=0.2, linewidth=0)


def _label(comparison: Comparison, group: Group) -> str:
    """Returns what distinguishes the group."""
    values = ((key.rpartition(".")[2], group.value(key)) for key in comparison.differing)
    text = ", ".join(f"{key}={each[0]}" for key, each in values if len(each) == 1)
    return text or group.trials[0].job.name


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def _add_legend(figure: Any) -> None:
    """Names the lines, or some of many in even distances: their colours are in their order."""
    named = list(zip(*figure.axes[0].get_legend_handles_labels(), strict=True))
    shown = named[:: math.ceil(len(named) / _NAMED)]
    handles, labels = zip(*shown, strict=True)
    title = (
        f"{len(shown)} of {len(named)}, in the order of their colours" if len(shown) < len(named) else None
    )
    figure.legend(handles, list(map(plain, labels)), title=title, ncols=2, loc="outside lower center")


def plain(text: str) -> str:
    """Returns text that matplotlib shows as it is: $ would begin a formula."""
    return clean(text).replace("$", r"\$")
