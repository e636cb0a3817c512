"""Reports the progress of a run to the host agent, at most once a second and at the end."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace

from training.metric_names import is_detail
from training.protocol import LONGEST_METRICS, Progress
from training.tracking.tracker import NullTracker

SECONDS_BETWEEN = 1.0


class ProgressTracker(NullTracker):
    """Calls `report` with the last progress and the latest value of each metric. Used on rank 0."""

    def __init__(self, report: Callable[[Progress], None]) -> None:
        self._report = report
        self._metrics: dict[str, float] = {}
        self._progress: Progress | None = None
        self._last_report = float("-inf")

    def log(self, step: int, epoch: int, metrics: Mapping[str, float]) -> None:  # noqa: ARG002
        for name, value in metrics.items():
            if not is_detail(name) and (name in self._metrics or len(self._metrics) < LONGEST_METRICS):
                self._metrics[name] = value

    def progress(self, progress: Progress) -> None:
        self._progress = progress
        if time.monotonic() - self._last_report >= SECONDS_BETWEEN:
            self._report_now()

    def close(self, *, wait: bool = True) -> None:  # noqa: ARG002
        self._report_now()

    def _report_now(self) -> None:
        if self._progress is not None:
            self._last_report = time.monotonic()
            self._report(replace(self._progress, metrics=dict(self._metrics)))
