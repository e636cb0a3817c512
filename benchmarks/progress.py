"""Progress of a benchmark on stderr: a line for each run, and a bar where rich is installed."""

from __future__ import annotations

from importlib.util import find_spec

from benchmarks.lines import Progress

__all__ = ["Progress", "progress"]


def progress(title: str, total: int) -> Progress:
    """Returns a bar if rich is installed, otherwise lines. total: the number of runs."""
    if not (find_spec("rich") and find_spec("typer")):
        return Progress(title, total)
    from benchmarks.bar import Bar

    return Bar(title, total)
