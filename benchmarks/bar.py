"""A progress bar with the elapsed time."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich import progress

from benchmarks.lines import Progress
from service.cli.output import console


class Bar(Progress):
    def __init__(self, title: str, total: int) -> None:
        super().__init__(title, total)
        self._bar = progress.Progress(
            progress.TextColumn("{task.description}", markup=False),
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            progress.TimeElapsedColumn(),
            console=console(stderr=True),
        )
        self._task = self._bar.add_task(title, total=total)

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
            super().doing(what)

    def done(self, what: str) -> None:
        super().done(what)
        self._bar.advance(self._task)

    def _say(self, line: str) -> None:
        self._bar.console.print(line)
