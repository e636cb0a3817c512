"""Generates docs/explanation/figures.md: the results of the execution core's benchmarks in one table.

Reads only benchmarks/results/*.json, so that no figure is copied by hand.
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
SHOWN = ("startup", "recovery", "verify", "head", "answers", "queue", "logs")
HEAD = (
    "# Figures\n\n"
    "The waiting times of a job and the resources of a stack. Each was measured in turns with a peer in one "
    "run; the figures are medians. A ratio below 1 is in our favour. `python -m benchmarks NAME` measures "
    "one of them again and writes this page; `make bench` measures all. A result's own page says exactly "
    "what was measured, with the minimum and maximum of each figure.\n"
)
COLUMNS = ("measure", "ours", "peer", "ratio", "result")


def write(page: Path = PAGE, results: Path = RESULTS) -> None:
    """Writes the page from the results in a folder."""
    page.write_text(text(read(results)))


def text(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns the page. `results`: the documents of results/NAME.json, by name."""
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
            f"Load average of the minute before and after each run: {', '.join(loads)}. A load higher than "
            "the benchmark's own processes cause means that the machine had other work.",
            "",
        ]
    )


def read(folder: Path = RESULTS) -> dict[str, dict[str, Any]]:
    """Returns the documents of the results that exist, by name."""
    files = {name: folder / f"{name}.json" for name in SHOWN}
    return {name: json.loads(file.read_text()) for name, file in files.items() if file.exists()}


def _rows(name: str, result: Mapping[str, Any]) -> Iterator[Sequence[str]]:
    """Yields a row for each peer of a measure, and one for a measure without a peer."""
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
