"""What the service asks of the tracking server: a run for each job, and what the run has learned.

`service.mlflow_rest.MlflowRest` is the real one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol


def is_detail(metric: str) -> bool:
    """Whether a metric is shown only to those who name it: one of the machine, or of a single layer."""
    return metric.startswith(("system/", "norm/"))


@dataclass(frozen=True, kw_only=True)
class Run:
    experiment_id: str
    run_id: str


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a run stands. Steps are the optimizer's, from 1; epochs count from 0."""

    step: int
    total_steps: int | None
    epoch: int
    eta_seconds: float | None


@dataclass(frozen=True, kw_only=True)
class Summary:
    """A run's progress (None before the first step) and the latest value of every metric."""

    progress: Progress | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)


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

    def summaries(self, runs: Iterable[Run]) -> dict[str, Summary]:
        """By run id; a run that the server does not know is left out."""

    def history(self, run: Run, names: Iterable[str] | None = None) -> list[Point]:
        """Every point of the metrics named (all: None), by name and step. System metrics only by name."""

    def end(self, run: Run, status: str) -> None:
        """Gives the run its end: FINISHED, FAILED or KILLED."""

    def upload(self, run: Run, path: str, text: str) -> None:
        """Stores `text` as an artifact of the run, replacing what was at `path`."""

    def download(self, run: Run, path: str) -> str | None:
        """The artifact's text; None when there is none."""
