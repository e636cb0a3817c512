"""The result of a benchmark, and its files: results/NAME.json and results/NAME.md."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

RESULTS = Path(__file__).parent / "results"

Samples = Mapping[str, Mapping[str, Sequence[float]]]
"""Values by measure and contestant, one a repeat."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of a benchmark.

    repeats: runs of each contestant. quick: as small as possible, only to check that the benchmark works.
    before: a checkout of an earlier version of this project to compare with; None: no comparison.
    """

    repeats: int = 3
    quick: bool = False
    before: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Result:
    """A table, its samples, and the notes that a reader needs.

    parts: further tables below it. A result that only has parts has no columns.
    """

    title: str
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    notes: Sequence[str] = ()
    samples: Samples = field(default_factory=dict)
    parts: Sequence[Result] = ()


def comparison(title: str, samples: Samples, *, reference: str | None, notes: Sequence[str]) -> Result:
    """Returns a table of medians and ranges.

    reference: the contestant to whose median each median's ratio is shown; None: no ratios.
    """
    columns: tuple[str, ...] = ("measure", "contestant", "median", "minimum", "maximum")
    rows: list[tuple[str, ...]] = [
        (measure, contestant, *_spread(values))
        for measure, contestants in samples.items()
        for contestant, values in contestants.items()
    ]
    if reference is not None:
        columns = (*columns, f"ratio to {reference}")
        ratios = [
            _ratio(median(values), contestants.get(reference))
            for contestants in samples.values()
            for values in contestants.values()
        ]
        rows = [(*row, ratio) for row, ratio in zip(rows, ratios, strict=True)]
    return Result(title=title, columns=columns, rows=rows, notes=notes, samples=samples)


def _spread(values: Sequence[float]) -> tuple[str, str, str]:
    middle, least, most = (f"{value:.2f}" for value in (median(values), min(values), max(values)))
    return middle, least, most


def _ratio(value: float, reference: Sequence[float] | None) -> str:
    other = median(reference) if reference else 0.0
    # A reference that is shown as 0.00 gives no meaningful ratio.
    return f"{value / other:.2f}" if value >= 0 and other >= 0.005 else "-"


def as_text(result: Result) -> str:
    """Returns the result as text for a terminal, with aligned columns."""
    parts = [result.title, _aligned(result), "\n".join(f"- {note}" for note in result.notes)]
    return "\n\n".join([*filter(None, parts), *map(as_text, result.parts)])


def _aligned(result: Result) -> str:
    lines = [result.columns, *result.rows] if result.columns else []
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def write(
    name: str, result: Result, *, command: str, machine: Mapping[str, str], folder: Path = RESULTS
) -> None:
    """Replaces both files of the benchmark `name`."""
    folder.mkdir(parents=True, exist_ok=True)
    facts = {"command": command, "machine": machine, **_facts(result)}
    (folder / f"{name}.json").write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n")
    (folder / f"{name}.md").write_text(_markdown(result, command, machine))


def _facts(result: Result) -> dict[str, Any]:
    return {**vars(result), "parts": [_facts(part) for part in result.parts]}


def _markdown(result: Result, command: str, machine: Mapping[str, str]) -> str:
    parts = [
        *_sections(result),
        f"Command: `{command}`",
        "Machine: " + ", ".join(f"{name} {value}" for name, value in machine.items()),
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def _sections(result: Result, level: int = 1) -> Iterator[str]:
    yield f"{'#' * level} {result.title}"
    if result.columns:
        yield "\n".join(map(_row, (result.columns, ["---"] * len(result.columns), *result.rows)))
    yield "\n".join(f"- {note}" for note in result.notes)
    for part in result.parts:
        yield from _sections(part, level + 1)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
