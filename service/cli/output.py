"""Output formatting: tables, numbers, durations, sparklines, JSON."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import typer
from rich.console import Console, ConsoleDimensions, RenderableType
from rich.table import Table as Grid
from rich.text import Text

from service.cli.tables import Cell, Column, Table
from service.escapes import without_sequences
from training.metric_names import display_order, is_detail

if TYPE_CHECKING:
    from service.client import Total

_STYLES = {
    "succeeded": "green",
    "failed": "red",
    "cancelled": "magenta",
    "running": "blue",
    "starting": "cyan",
}
_BARS = "▁▂▃▄▅▆▇█"
_PIPE_WIDTH = 1_000_000


def print_json(data: object) -> None:
    """Prints `data` as indented JSON on standard output."""
    typer.echo(json.dumps(data, indent=2, ensure_ascii=False))


def console(*, stderr: bool = False) -> Console:
    """Returns a console that interprets no markup. Output to a pipe is neither cut nor wrapped."""
    plain = Console(stderr=stderr, markup=False, highlight=False, emoji=False)
    if not plain.is_terminal:
        plain.width = _PIPE_WIDTH
    elif plain.is_dumb_terminal:
        plain.size = ConsoleDimensions(*shutil.get_terminal_size())  # rich takes all for 80 columns wide
    return plain


def table(columns: Sequence[str | Column], rows: Iterable[Sequence[Cell]]) -> Table:
    """Returns a table without lines, one line a row. A column given by its name alone is never cut."""
    return Table([Column(name=column) if isinstance(column, str) else column for column in columns], rows)


def fields(pairs: Iterable[tuple[str, RenderableType | None]]) -> Grid:
    """Returns names and values in two columns, one pair a row; skips values that are None or ""."""
    grid = Grid.grid(padding=(0, 2))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in pairs:
        if value is not None and value != "":
            grid.add_row(name, value)
    return grid


def state(name: str) -> Text:
    """Returns a job's state in its colour."""
    return Text(name, style=_STYLES.get(name, "yellow"))


def clean(text: object) -> str:
    """Returns the text without escape sequences, and with spaces for other control characters.

    So neither a job's name nor its error can control the terminal.
    """
    text = without_sequences(str(text))
    return text if text.isprintable() else "".join(char if char.isprintable() else " " for char in text)


def first_line(text: str | None) -> str:
    """Returns the first line. A failed job's reason also holds its log."""
    return clean((text or "").partition("\n")[0])


def headline(text: str, longest: int = 160) -> str:
    """Returns the first line, cut to `longest` characters."""
    line = first_line(text)
    return line if len(line) <= longest else f"{line[: longest - 1]}…"


def number(value: float | None) -> str:
    """Formats a number with four significant digits, large integers in full; None is "-"."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if float(value).is_integer() and abs(value) >= 1000 else f"{value:.4g}"


def duration(seconds: float | None) -> str:
    """Formats a duration in its two largest units; None is "-".

    >>> duration(185.2)
    '3 min 5 s'
    """
    if seconds is None:
        return "-"
    total = max(0, round(seconds))
    units = [(total // 86400, "d"), (total // 3600 % 24, "h"), (total // 60 % 60, "min"), (total % 60, "s")]
    first = next((i for i, (amount, _) in enumerate(units) if amount), 3)
    parts = [f"{amount} {unit}" for amount, unit in units[first : first + 2] if amount]
    return " ".join(parts) or "0 s"


def sorted_metrics(metrics: Mapping[str, float | None]) -> list[tuple[str, str]]:
    """Returns names and formatted values in display order, without detail metrics."""
    names = sorted((name for name in metrics if not is_detail(name)), key=display_order)
    return [(clean(name), metric(metrics[name])) for name in names]


def metric(value: float | None) -> str:
    """Formats a metric's value. None is a value that is not finite, such as a diverged loss."""
    return "not finite" if value is None else number(value)


def sparkline(values: Sequence[float], width: int = 24) -> str:
    """Draws the curve of `values` in at most `width` characters, scaled from lowest to highest.

    >>> sparkline([0, 1, 2, 3])
    '▁▃▆█'
    """
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return ""
    means = [_mean(finite, i, min(width, len(finite))) for i in range(min(width, len(finite)))]
    low, spread = min(means), max(means) - min(means)
    if spread <= 1e-9 * max(map(abs, means)):  # a constant, up to the rounding of the means
        spread = math.inf
    return "".join(_BARS[round((mean - low) / spread * (len(_BARS) - 1))] for mean in means)


def sparklines(curves: Sequence[Sequence[tuple[int, float]]], width: int) -> list[str]:
    """Draws curves of points (step, value) on the same axes, each in at most `width` characters.

    Between two points a curve keeps its value. A curve of less than two points is "".

    >>> sparklines([[(1, 0.0), (2, 1.0), (3, 2.0)], [(2, 1.0), (3, 1.0)]], 9)
    ['▁▅█', ' ▅▅']
    """
    points = [point for curve in curves if len(curve) > 1 for point in curve]
    if not points:
        return [""] * len(curves)
    first, last = min(step for step, _ in points), max(step for step, _ in points)
    low, high = min(value for _, value in points), max(value for _, value in points)
    width = min(width, last - first + 1)
    return [
        "".join(_bar(mean, low, high) for mean in _resampled(curve, first, last, width)).rstrip()
        if len(curve) > 1
        else ""
        for curve in curves
    ]


def _resampled(
    curve: Sequence[tuple[int, float]], first: int, last: int, width: int
) -> Iterator[float | None]:
    """Yields the mean in each of `width` equal spans of steps; None outside the curve."""
    spans: list[list[float]] = [[] for _ in range(width)]
    for step, value in curve:
        spans[(step - first) * width // (last - first + 1)].append(value)
    end = max(i for i, span in enumerate(spans) if span)
    mean = None
    for span in spans[: end + 1]:
        mean = sum(span) / len(span) if span else mean
        yield mean


def _bar(value: float | None, low: float, high: float) -> str:
    if value is None:
        return " "
    return _BARS[round((value - low) / (high - low) * (len(_BARS) - 1))] if high > low else _BARS[0]


def _mean(values: Sequence[float], part: int, parts: int) -> float:
    cut = values[part * len(values) // parts : (part + 1) * len(values) // parts]
    return sum(cut) / len(cut)


def total(amount: Total) -> str:
    """Formats an amount, as in 2 workers, 4 CPUs, 1 GPU."""
    from training.spec import shown_memory

    counts = [(amount.workers, "worker"), (amount.cpus, "CPU"), (amount.gpus, "GPU")]
    parts = [f"{number(count)} {unit}{'' if count == 1 else 's'}" for count, unit in counts if count]
    return ", ".join([*parts, shown_memory(amount.memory)] if amount.memory else parts)
