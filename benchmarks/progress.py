"""What a benchmark shows while it runs: a bar, and a line for each run that is done."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich import progress

from service.cli.output import console


class Progress:
    """Shown on stderr while the context lasts. `total` counts runs."""

    def __init__(self, title: str, total: int) -> None:
        self._bar = progress.Progress(
            progress.TextColumn("{task.description}", markup=False),
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            progress.TimeElapsedColumn(),
            console=console(stderr=True),
        )
        self._title, self._total = title, total
        self._task = self._bar.add_task(title, total=total)
        self._done = 0

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def doing(self, what: str) -> None:
        self._bar.update(self._task, description=f"{self._title}: {what}")
        if not self._bar.console.is_terminal:
            self._bar.console.print(f"{self._title}: {what}")

    def done(self, what: str) -> None:
        """One run is done."""
        self._done += 1
        self._bar.console.print(f"{self._title} {self._done}/{self._total}: {what}")
        self._bar.advance(self._task)
