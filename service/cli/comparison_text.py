"""A comparison of jobs as text: tables, and curves on the same axes. Readable in 80 columns."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from service.cli import output
from service.cli.comparison import Comparison, Group, Trial
from service.cli.references import short_ids
from service.cli.tables import Cell, Column, Cut, shortened
from service.differences import SHOWN_DIGITS, Spread

_LONGEST = 28  # cells of a parameter's value
_CURVE = 30  # characters of a curve
_GAP = 2  # columns between two columns of a table


def print_comparison(comparison: Comparison) -> None:
    """Prints the jobs, the parameters that differ, and each metric with one line per group."""
    screen = output.console()
    _print_jobs(comparison, screen)
    _print_parameters(comparison, screen)
    for metric in comparison.metrics:
        _print_metric(comparison.groups, metric, screen)
    if not comparison.metrics:
        screen.print("\nno metrics yet")


def _print_jobs(comparison: Comparison, screen: Console) -> None:
    trials = [trial for group in comparison.groups for trial in group.trials]
    short = short_ids((trial.job.id for trial in trials), screen)
    rows: list[list[Cell]] = [
        [str(group.number), short(trial.job.id), output.clean(trial.job.name), output.state(trial.job.state)]
        for group in comparison.groups
        for trial in group.trials
    ]
    columns: list[str | Column] = ["#", "ID", Column(name="NAME", least=12, cut=Cut.MIDDLE), "STATE"]
    if any(trial.job.weights_sha256 for trial in trials):
        columns.append("WEIGHTS")
        rows = [[*row, _weights(comparison, trial)] for row, trial in zip(rows, trials, strict=True)]
    screen.print(output.table(columns, rows))


def _weights(comparison: Comparison, trial: Trial) -> str:
    """Returns the first digits of the SHA-256 of the job's weights, and whether they are the first job's."""
    digest = trial.job.weights_sha256
    if digest is None:
        return "-"
    return f"{output.clean(digest[:SHOWN_DIGITS])} {comparison.weights[trial.job.id]}".rstrip()


def _print_parameters(comparison: Comparison, screen: Console) -> None:
    """Prints a row per parameter and a column per group; as many tables as the width of the screen needs."""
    keys, groups = comparison.differing, comparison.groups
    if not keys:
        screen.print("\nno parameter differs")
        return
    columns = [[str(group.number), *(_values(group, key) for key in keys)] for group in groups]
    # As wide as the screen leaves beside the longest value.
    widest = max(screen.width - _GAP - max(cell_len(cell) for column in columns for cell in column), 1)
    keys = [shortened(key, widest, Cut.BEGIN) for key in map(output.clean, keys)]
    for part in _fitting(columns, screen.width - max(map(cell_len, [*keys, "PARAMETER"]))):
        header, *rows = zip(["PARAMETER", *keys], *part, strict=True)
        screen.print()
        screen.print(output.table(header, rows))


def _values(group: Group, key: str) -> str:
    texts = [value if isinstance(value, str) else json.dumps(value) for value in group.value(key)]
    text = output.clean(", ".join(texts)) or "-"
    # Of class paths the end says most.
    return shortened(text, _LONGEST, Cut.BEGIN if key.endswith("class_path") else Cut.END)


def _fitting(columns: Sequence[list[str]], width: int) -> Iterator[list[list[str]]]:
    """Yields the columns in parts of at most `width` characters, and of one column at least."""
    part: list[list[str]] = []
    used = 0
    for column in columns:
        size = _GAP + max(map(cell_len, column))
        if part and used + size > width:
            yield part
            part, used = [], 0
        part.append(column)
        used += size
    yield part


def _print_metric(groups: Sequence[Group], metric: str, screen: Console) -> None:
    curves = [[(step, spread.mean) for step, spread in group.curve(metric)] for group in groups]
    finite = [[(step, mean) for step, mean in curve if mean is not None] for curve in curves]
    mode = next((mode for group in groups if (mode := group.mode(metric))), None)
    screen.print()
    best = f"({mode} is best)" if mode else ""
    title = shortened(output.clean(metric), screen.width - len(best) - 1, Cut.MIDDLE)
    screen.print(Text(title, style="bold"), best)
    header = ["#", "LAST", *(["BEST", "STEP"] if mode else [])]
    rows = [
        [str(group.number), _number(group.last(metric)), *(_best(group, metric) if mode else [])]
        for group in groups
    ]
    used = sum(_GAP + max(map(len, column)) for column in zip(header, *rows, strict=True))
    lines = output.sparklines(finite, width=min(_CURVE, max(1, screen.width - used)))
    rows = [[*row, line] for row, line in zip(rows, lines, strict=True)]
    screen.print(output.table([*header, "CURVE"], rows))


def _best(group: Group, metric: str) -> list[str]:
    steps = sorted(set(group.best_steps(metric)))
    span = f"{steps[0]}–{steps[-1]}" if len(steps) > 1 else "".join(map(str, steps))
    return [_number(group.best(metric)).partition(" (")[0], span]  # as many jobs as in LAST


def _number(spread: Spread | None) -> str:
    if spread is None:
        return "-"
    if spread.mean is None or spread.deviation is None:
        return output.metric(spread.mean)
    return f"{output.number(spread.mean)} ± {spread.deviation:.2g} ({spread.jobs})"
