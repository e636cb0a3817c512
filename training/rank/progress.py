"""Tells the rank's agent where the run stands: once a second at most, and at the end."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace

from training.protocol import LONGEST_METRICS, Progress, is_detail
from training.tracking.tracker import NullTracker

SECONDS_BETWEEN = 1.0


class ProgressTracker(NullTracker):
    """`tell` gets the last known progress with the latest value of each metric; rank 0 has one."""

    def __init__(self, tell: Callable[[Progress], None]) -> None:
        self._tell = tell
        self._metrics: dict[str, float] = {}
        self._progress: Progress | None = None
        self._told = float("-inf")

    def log(self, step: int, epoch: int, metrics: Mapping[str, float]) -> None:  # noqa: ARG002
        for name, value in metrics.items():
            if not is_detail(name) and (name in self._metrics or len(self._metrics) < LONGEST_METRICS):
                self._metrics[name] = value

    def progress(self, progress: Progress) -> None:
        self._progress = progress
        if time.monotonic() - self._told >= SECONDS_BETWEEN:
            self._say()

    def close(self, *, patient: bool = True) -> None:  # noqa: ARG002
        self._say()

    def _say(self) -> None:
        if self._progress is not None:
            self._told = time.monotonic()
            self._tell(replace(self._progress, metrics=dict(self._metrics)))
