"""A benchmark's progress as lines on stderr."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Self


class Progress:
    """Prints progress as lines. `total`: the number of runs."""

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
        """Reports what the benchmark does now."""
        self._say(f"{self._title}: {what}")

    def done(self, what: str) -> None:
        """Reports that one run is done."""
        self._done += 1
        self._say(f"{self._title} {self._done}/{self._total}: {what}")

    def _say(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)
