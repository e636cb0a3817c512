"""A sweep as text: its state, and a table of its points."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Console

from service.cli import output
from service.cli.job_list import progress_cell
from service.cli.references import short_ids
from service.cli.tables import Cell, Column, Cut, shortened
from service.differences import short_keys
from training.metric_names import display_order

if TYPE_CHECKING:
    from service.client import PlannedPoint, Sweep, SweepPoint

_LONGEST = 28  # cells of a value
_METRICS = 3


def print_sweep(sweep: Sweep, screen: Console) -> None:
    """Prints the sweep and all its points."""
    screen.print(
        output.fields(
            [
                ("id", sweep.id),
                ("name", output.clean(sweep.name)),
                ("state", output.state(sweep.state)),
                ("reason", output.clean(sweep.reason or "")),
                ("jobs", counts(sweep)),
                ("at once", None if sweep.max_running is None else f"at most {sweep.max_running}"),
                ("MLflow", sweep.mlflow.url if sweep.mlflow else None),
            ]
        )
    )
    screen.print()
    print_points(sweep.keys, sweep.points, screen)


def print_points(keys: Iterable[str], points: Iterable[SweepPoint], screen: Console) -> None:
    """Prints a table of points: their values, and the state, progress and metrics of their jobs."""
    points, names = list(points), short_keys(keys)
    metrics = sorted({name for point in points for name in point.metrics}, key=display_order)[:_METRICS]
    columns = [
        Column(name="#", worth=9),
        *(Column(name=output.clean(name), worth=5, least=6, cut=Cut.BEGIN) for name in names.values()),
        Column(name="ID", worth=8),
        Column(name="STATE", worth=7),
        Column(name="PROGRESS", worth=2),
        *(Column(name=output.clean(name), worth=4) for name in metrics),
        Column(name="REASON", worth=3, least=16),
    ]
    short = short_ids((point.job for point in points), screen)
    rows: list[list[Cell]] = [
        [
            str(point.number),
            *(_value(point.values, key) for key in names),
            short(point.job),
            output.state(point.state),
            progress_cell(point.progress),
            *(output.metric(point.metrics[name]) if name in point.metrics else "" for name in metrics),
            "" if point.state == "succeeded" else output.first_line(point.reason),
        ]
        for point in points
    ]
    table = output.table(columns, rows)
    screen.print(table)
    if hidden := table.hidden(screen):
        note = f"not shown, for lack of room: {', '.join(hidden)}; --json has all"
        screen.print(shortened(note, screen.width), style="dim")


def print_planned(points: Iterable[PlannedPoint], screen: Console) -> None:
    """Prints the points that a sweep would have."""
    points = list(points)
    names = short_keys(dict.fromkeys(key for point in points for key in point.values))
    rows: list[list[Cell]] = [
        [str(point.number), *(_value(point.values, key) for key in names), output.clean(point.name)]
        for point in points
    ]
    columns = [
        Column(name="#", worth=3),
        *(Column(name=output.clean(name), worth=2, least=6, cut=Cut.BEGIN) for name in names.values()),
        Column(name="NAME", worth=1, least=12, cut=Cut.MIDDLE),
    ]
    screen.print(output.table(columns, rows))


def counts(sweep: Sweep) -> str:
    """Returns how many jobs have which state, as in 6: 2 running, 3 queued, 1 succeeded."""
    states = ", ".join(f"{count} {state}" for state, count in sweep.counts.items())
    return f"{sweep.jobs}: {states}"


def value_text(value: object) -> str:
    """Returns a value on one line; of a long one the end, which says most of class paths."""
    text = output.clean(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
    return shortened(text, _LONGEST, Cut.BEGIN)


def _value(values: Mapping[str, Any], key: str) -> str:
    return value_text(values[key]) if key in values else ""
