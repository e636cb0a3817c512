"""What the service asks of the tracking server: a run for each job, and the history of its metrics.

`service.backends.mlflow.MlflowRest` is the real one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from service.jobs.job import Run


@dataclass(frozen=True, kw_only=True)
class Point:
    """One value of a metric. `timestamp` in milliseconds since the epoch."""

    name: str
    step: int
    value: float
    timestamp: int


class Results(Protocol):
    """Every method raises `Unavailable` when the tracking server does not answer."""

    def check(self) -> None:
        """Raises unless the server answers."""

    def url(self, run: Run) -> str:
        """Where a browser shows the run. Asks nobody."""

    def ensure_run(self, *, job_id: str, name: str, experiment: str) -> Run:
        """The job's run, created if it has none; asking twice gives the same run."""

    def history(self, run: Run, names: Iterable[str] | None = None) -> list[Point]:
        """Every point of the metrics named (all: None), by name and step. System metrics only by name."""

    def end(self, run: Run, status: str) -> None:
        """Gives the run its end: FINISHED, FAILED or KILLED."""

    def upload(self, run: Run, path: str, text: str) -> None:
        """Stores `text` as an artifact of the run, replacing what was at `path`."""

    def upload_file(self, run: Run, path: str, file: Path) -> None:
        """The same for a file of any size, which is not held in memory. Raises OSError, for a link too."""

    def download(self, run: Run, path: str) -> str | None:
        """The artifact's text; None when there is none."""
