"""docs/explanation/figures.md: what the benchmarks of the execution core have found, in one table.

Written from benchmarks/results/*.json alone, so that no figure is copied by hand.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.result import RESULTS

PAGE = Path(__file__).parents[1] / "docs" / "explanation" / "figures.md"
OURS = "ours"
SHOWN = ("startup", "recovery", "verify", "head", "answers", "logs")
HEAD = (
    "# Figures\n\n"
    "What a job waits for and what a stack takes, each measured beside a peer in one run, in turns; medians. "
    "A ratio below 1 is in our favour. `python -m benchmarks NAME` measures one of them again and writes "
    "this page; `make bench` measures all. A result's own page says what was measured exactly, and "
    "the least and the most of each figure.\n"
)
COLUMNS = ("what", "ours", "beside", "ratio", "result")


def write(page: Path = PAGE, results: Path = RESULTS) -> None:
    page.write_text(text(read(results)))


def text(results: Mapping[str, Mapping[str, Any]]) -> str:
    """The page. `results`: the documents of results/NAME.json, by name."""
    rows = [row for name in SHOWN if name in results for row in _rows(name, results[name])]
    table = "\n".join(f"| {' | '.join(row)} |" for row in (COLUMNS, ["---"] * len(COLUMNS), *rows))
    loads = [f"{name} {_load(results[name])}" for name in SHOWN if name in results]
    machines = {_machine(results[name]["machine"]) for name in SHOWN if name in results}
    return "\n".join(
        [
            HEAD,
            table,
            "",
            f"Machine: {'; '.join(sorted(machines))}.",
            "",
            f"Load of the minute before and after each run: {', '.join(loads)}. It had other work where a "
            "load is higher than what its own processes make.",
            "",
        ]
    )


def read(folder: Path = RESULTS) -> dict[str, dict[str, Any]]:
    files = {name: folder / f"{name}.json" for name in SHOWN}
    return {name: json.loads(file.read_text()) for name, file in files.items() if file.exists()}


def _rows(name: str, result: Mapping[str, Any]) -> Iterator[Sequence[str]]:
    """A row for each peer of a measure; one for a measure that has none."""
    link = f"[{result['title']}](../../benchmarks/results/{name}.md)"
    for measure, contestants in result["samples"].items():
        (us, own), *others = ((who, median(values)) for who, values in contestants.items())
        what, unit = measure.rpartition(", ")[::2]
        what = what if us == OURS else f"{us}, {what}"
        if not others:
            yield what, _shown(own, unit), "", "", link
        for who, value in others:
            yield what, _shown(own, unit), f"{who}: {_shown(value, unit)}", _ratio(own, value), link


def _shown(value: float, unit: str) -> str:
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:.{digits}f} {unit}"


def _ratio(own: float, other: float) -> str:
    return f"{own / other:.2f}" if other >= 0.005 else "-"


def _load(result: Mapping[str, Any]) -> str:
    machine = result["machine"]
    return f"{machine['load before']} and {machine.get('load after', '?')}"


def _machine(facts: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in facts.items() if not name.startswith("load"))
