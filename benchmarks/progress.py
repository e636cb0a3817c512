"""What a benchmark shows on stderr while it runs: a line for each run, and a bar where rich is installed."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from types import TracebackType
from typing import Self


class Progress:
    """Lines. Shown while the context lasts; `total` counts runs."""

    def __init__(self, title: str, total: int) -> None:
        self._title, self._total = title, total
        self._done = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def doing(self, what: str) -> None:
        self._say(f"{self._title}: {what}")

    def done(self, what: str) -> None:
        """One run is done."""
        self._done += 1
        self._say(f"{self._title} {self._done}/{self._total}: {what}")

    def _say(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)


def progress(title: str, total: int) -> Progress:
    """The best that can be shown here."""
    if not (find_spec("rich") and find_spec("typer")):
        return Progress(title, total)
    from benchmarks.bar import Bar

    return Bar(title, total)
