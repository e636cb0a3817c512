"""The figures of a report on a sweep: metrics against each numeric key, and curves over each other."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from service.cli.comparison import Comparison
from service.cli.comparison_figure import figure_of, plain
from service.cli.sweep_report import Arm, Findings, Picture, same
from service.differences import Spread

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST_CURVES = 30
_MOST_METRICS = 4
_MOST_LINES = 8
_WIDE = 9.99
"""Values whose highest is so many times the lowest are shown on a logarithmic axis."""


def pictures(findings: Findings) -> Iterator[Picture]:
    """Yields the figures that the results allow; the same results give the same bytes."""
    from matplotlib import style

    with style.context("default"):  # whatever the user has set for figures of their own
        metrics = _metrics(findings)
        for key in findings.keys if metrics else ():
            if len({arm.values[key] for arm in findings.arms if _is_number(arm.values[key])}) > 1:
                yield Picture(title=f"Metrics by {key}", png=_png(_by_key(findings, key, metrics)))
        if findings.comparison.groups and findings.metrics:
            yield _curves(findings)


def _curves(findings: Findings) -> Picture:
    groups, title = findings.comparison.groups, "Curves"
    if len(groups) > _MOST_CURVES and findings.ranked:
        groups = [arm.group for arm in findings.ranked[:_MOST_CURVES]]
        title = f"Curves of the {_MOST_CURVES} best"
    labels = {arm.group.number: findings.label(arm.values) for arm in findings.arms}
    several = [name for name in findings.metrics if any(len(group.curve(name)) > 1 for group in groups)]
    comparison = Comparison(groups=groups[: 2 * _MOST_CURVES], metrics=several or findings.metrics)
    return Picture(title=title, png=_png(figure_of(comparison, labels)))


def _metrics(findings: Findings) -> list[str]:
    """Returns the metrics to draw against keys: the objective, then those of test and validation."""
    names = [name for name in findings.metrics if name.startswith(("test_", "val_"))]
    first = [findings.objective] if findings.objective else []
    return list(dict.fromkeys([*first, *names]))[:_MOST_METRICS]


def _by_key(findings: Findings, key: str, metrics: Sequence[str]) -> Figure:
    from matplotlib.figure import Figure

    columns = min(2, len(metrics))
    rows = math.ceil(len(metrics) / columns)
    figure = Figure(figsize=(6.4 * columns, 4.2 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    lines = _lines(findings, key)
    connected = len(lines) <= _MOST_LINES
    for panel, name in zip(panels, metrics, strict=False):
        title = f"best {name}" if findings.shows_best(name) else name
        panel.set(title=plain(title), xlabel=plain(key))
        panel.grid(alpha=0.3)
        if is_geometric([arm.values[key] for arm in findings.arms if _is_number(arm.values[key])]):
            panel.set_xscale("log")
            places = [float(arm.values[key]) for arm in findings.arms if _is_number(arm.values[key])]
            panel.set_xlim(min(places) / 1.5, max(places) * 1.5)
        for number, (label, arms) in enumerate(lines):
            color = f"C{number}" if connected else "C0"
            scores = [(float(arm.values[key]), findings.score(arm, name)) for arm in arms]
            _draw_line(panel, scores, label=plain(label), color=color, linestyle="-" if connected else "")
    for panel in panels[len(metrics) :]:
        panel.set_visible(False)
    if connected and len(lines) > 1:
        figure.legend(*panels[0].get_legend_handles_labels(), ncols=2, loc="outside lower center")
    return figure


def _lines(findings: Findings, key: str) -> list[tuple[str, list[Arm]]]:
    """Returns the arms that differ in this key alone, in order of its values, with their other values."""
    lines: dict[str, list[Arm]] = {}
    for arm in findings.arms:
        if _is_number(arm.values[key]):
            lines.setdefault(same(arm.values, without=key), []).append(arm)
    return [
        (_label(findings, arms[0], key), sorted(arms, key=lambda arm: float(arm.values[key])))
        for arms in lines.values()
    ]


def _label(findings: Findings, arm: Arm, key: str) -> str:
    return findings.label({name: value for name, value in arm.values.items() if name != key})


def _draw_line(panel: Any, scores: Iterable[tuple[float, Spread | None]], **look: str) -> None:
    known = [(x, each.mean, each.deviation or 0.0) for x, each in scores if each and each.mean is not None]
    if known:
        x, mean, deviation = zip(*known, strict=True)
        panel.errorbar(x, mean, yerr=deviation, marker="o", capsize=3, **look)


def is_geometric(values: Sequence[float]) -> bool:
    """Returns whether values belong on a logarithmic axis: positive, and evenly spaced there or far apart.

    >>> is_geometric([1, 10, 100]), is_geometric([32, 64, 128]), is_geometric([1, 2, 3])
    (True, True, False)
    """
    ordered = sorted(set(values))
    if len(ordered) < 2 or ordered[0] <= 0:
        return False
    ratios = [high / low for low, high in pairwise(ordered)]
    even = len(ratios) > 1 and max(ratios) <= 1.01 * min(ratios)
    return even or ordered[-1] >= _WIDE * ordered[0]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _png(figure: Figure) -> bytes:
    file = io.BytesIO()
    # Without the version of matplotlib, which it writes into the file.
    figure.savefig(file, format="png", dpi=100, metadata={"Software": None})
    return file.getvalue()
