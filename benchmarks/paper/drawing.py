"""Curves and bands, as the figures of several experiments have them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.paper.experiment import Runs
from benchmarks.paper.runs import Spread, merged

WITH, WITHOUT = "#1b6ca8", "#c0504d"
"""Colours: with BatchNorm, and without."""


def curve(axes: Any, runs: Runs, metric: str, *, label: str, **style: Any) -> None:
    """Draws the median over the runs, and a band from the minimum to the maximum. Without runs, nothing."""
    band(axes, merged(runs, metric), label=label, **style)


def band(axes: Any, points: Sequence[tuple[float, Spread]], *, label: str, **style: Any) -> None:
    """Draws points (x, spread): a line through the medians, and a band between the extremes."""
    if not points:
        return
    at = [x for x, _ in points]
    (line,) = axes.plot(at, [each.middle for _, each in points], label=label, **style)
    axes.fill_between(
        at,
        [each.least for _, each in points],
        [each.most for _, each in points],
        color=line.get_color(),
        alpha=0.2,
        linewidth=0,
    )


def finish(axes: Any, *, legend: bool = True, **settings: Any) -> None:
    """Sets labels, a grid and a legend."""
    axes.set(**settings)
    axes.grid(alpha=0.3)
    if legend and axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False)


def percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def steps(value: float) -> str:
    return f"{value:,.0f}"
