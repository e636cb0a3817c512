"""The Tracker protocol, which receives the metrics of a run, and its simple implementations.

Only rank 0 writes; the other ranks have a `NullTracker`.

Tracker           the protocol
├── NullTracker   discards everything
├── ProgressTracker  reports progress to the host agent (training.rank.progress)
├── JsonLines     a file with one JSON object per step
├── MlflowTracker MLflow, through a spool and in the background (training.tracking.mlflow_tracker)
└── Fanout        several trackers at once
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from training.protocol import Progress

History = dict[str, list[tuple[int, float]]]
"""The points (step, value) of each metric, by name, in order of steps."""


class Tracker(Protocol):
    """Receives metrics, parameters and results of one run."""

    def log(self, step: int, epoch: int, metrics: Mapping[str, float]) -> None:
        """Records metrics of a step. Idempotent for each metric and step. Never blocks on a network.

        step: the optimizer's, from 1. epoch: from 0.
        """

    def log_at(self, own_step: int, step: int, epoch: int, metrics: Mapping[str, float]) -> None:
        """Records metrics that user code logs at a step of its own, from 0, such as the number of the epoch.

        step, epoch: those of the training, for a tracker that knows no other steps. Otherwise as `log`.
        """

    def progress(self, progress: Progress) -> None:
        """Replaces the progress of the run."""

    def params(self, params: Mapping[str, str]) -> None:
        """Adds parameters of the run; existing ones keep their values. Never blocks on a network."""

    def tags(self, tags: Mapping[str, str]) -> None:
        """Sets tags of the run; replaces existing values. Never blocks on a network."""

    def sync(self) -> None:
        """Blocks until everything logged so far survives a crash. Called at every checkpoint."""

    def history(self, prefixes: tuple[str, ...] = ("",)) -> History:
        """Returns the metrics of all attempts of the run so far whose names have one of the prefixes."""

    def artifact(self, path: Path) -> None:
        """Stores a file under its name."""

    def best(self, points: Mapping[str, tuple[int, float]]) -> None:
        """Records the best point (step, value) of metrics by their names. Never blocks on a network."""

    def model(self, model: nn.Module, example: Any, step: int) -> None:
        """Stores the model of a step. example: an input batch, for the model's signature."""

    def close(self, *, wait: bool = True) -> None:
        """Blocks until everything is written. Raises an error if something could not be.

        wait: retry an unreachable server for minutes; if False, for seconds: another attempt will write the
        rest, or the run has failed anyway.
        """


class NullTracker:
    """A tracker that discards everything."""

    def log(self, step: int, epoch: int, metrics: Mapping[str, float]) -> None: ...

    def log_at(self, own_step: int, step: int, epoch: int, metrics: Mapping[str, float]) -> None:  # noqa: ARG002
        self.log(step, epoch, metrics)

    def progress(self, progress: Progress) -> None: ...

    def params(self, params: Mapping[str, str]) -> None: ...

    def tags(self, tags: Mapping[str, str]) -> None: ...

    def sync(self) -> None: ...

    def history(self, prefixes: tuple[str, ...] = ("",)) -> History:  # noqa: ARG002
        return {}

    def artifact(self, path: Path) -> None: ...

    def best(self, points: Mapping[str, tuple[int, float]]) -> None: ...

    def model(self, model: nn.Module, example: Any, step: int) -> None: ...

    def close(self, *, wait: bool = True) -> None: ...


class JsonLines(NullTracker):
    """`metrics.jsonl`: a line per step, {"step", "epoch", and every metric of that step by name}.

    A line is written when the next step begins, because an epoch's metrics belong to its last step. A resumed
    run continues in the same file at the last step there, whose metrics may be incomplete, and overwrites an
    incomplete line that a crash has left. NaN and infinity become null.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        self._end, self._pending = (_rows(path) or [(0, {})])[-1]
        self.written: int = self._pending.get("step", 1) - 1
        self._file = path.open("r+b")

    def log(self, step: int, epoch: int, metrics: Mapping[str, float]) -> None:
        if step <= self.written:
            return
        if step != self._pending.get("step", step):
            self._write()
        self._pending = {"step": step, "epoch": epoch} | self._pending | dict(metrics)

    def sync(self) -> None:
        self._write_pending()
        os.fsync(self._file.fileno())

    def _write(self) -> None:
        if self._pending:
            self._write_pending()
            self._end = self._file.tell()
            self.written = self._pending["step"]
            self._pending = {}

    def _write_pending(self) -> None:
        """Writes the pending line; overwrites an earlier version of it in the file."""
        if self._pending:
            values = {name: value if math.isfinite(value) else None for name, value in self._pending.items()}
            self._file.seek(self._end)
            self._file.write(json.dumps(values).encode() + b"\n")
            self._file.truncate()
            self._file.flush()

    def history(self, prefixes: tuple[str, ...] = ("",)) -> History:
        history: History = {}
        for row in [*(row for start, row in _rows(self.path) if start < self._end), self._pending]:
            for name, value in row.items():
                if name not in {"step", "epoch"} and name.startswith(prefixes):
                    history.setdefault(name, []).append((row["step"], value))
        return history

    def close(self, *, wait: bool = True) -> None:  # noqa: ARG002
        self._write()
        self._file.close()


def _rows(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """Returns each complete line of the file with its byte offset; null becomes NaN."""
    rows, start = [], 0
    for line in path.read_bytes().splitlines(keepends=True):
        if line.endswith(b"\n"):
            values = json.loads(line)
            rows.append(
                (start, {name: math.nan if value is None else value for name, value in values.items()})
            )
        start += len(line)
    return rows


class Fanout:
    """A tracker that forwards to several. Its history is the first one that is not empty."""

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        self.trackers = trackers

    def log(self, step: int, epoch: int, metrics: Mapping[str, float]) -> None:
        for tracker in self.trackers:
            tracker.log(step, epoch, metrics)

    def log_at(self, own_step: int, step: int, epoch: int, metrics: Mapping[str, float]) -> None:
        for tracker in self.trackers:
            tracker.log_at(own_step, step, epoch, metrics)

    def progress(self, progress: Progress) -> None:
        for tracker in self.trackers:
            tracker.progress(progress)

    def params(self, params: Mapping[str, str]) -> None:
        for tracker in self.trackers:
            tracker.params(params)

    def tags(self, tags: Mapping[str, str]) -> None:
        for tracker in self.trackers:
            tracker.tags(tags)

    def sync(self) -> None:
        for tracker in self.trackers:
            tracker.sync()

    def history(self, prefixes: tuple[str, ...] = ("",)) -> History:
        histories: Iterable[History] = (tracker.history(prefixes) for tracker in self.trackers)
        return next((history for history in histories if history), {})

    def artifact(self, path: Path) -> None:
        for tracker in self.trackers:
            tracker.artifact(path)

    def best(self, points: Mapping[str, tuple[int, float]]) -> None:
        for tracker in self.trackers:
            tracker.best(points)

    def model(self, model: nn.Module, example: Any, step: int) -> None:
        for tracker in self.trackers:
            tracker.model(model, example, step)

    def close(self, *, wait: bool = True) -> None:
        with ExitStack() as stack:  # closes all, even if one raises
            for tracker in self.trackers:
                stack.callback(tracker.close, wait=wait)


class Eta:
    """Estimates the remaining time from an exponential moving average of the seconds per step.

    total_steps: None if unknown; then there is no estimate.
    """

    def __init__(self, total_steps: int | None) -> None:
        self.total_steps = total_steps
        self._seconds_per_step: float | None = None
        self._last: tuple[int, float] | None = None

    def at(self, step: int, epoch: int, now: float | None = None) -> Progress:
        """Returns the progress after `step` steps. now: seconds of the monotonic clock; None: the current."""
        now = time.monotonic() if now is None else now
        if self._last is not None and step > self._last[0]:
            pace = (now - self._last[1]) / (step - self._last[0])
            before = pace if self._seconds_per_step is None else self._seconds_per_step
            self._seconds_per_step = 0.95 * before + 0.05 * pace
        self._last = (step, now)
        eta = None
        if self._seconds_per_step is not None and self.total_steps is not None:
            eta = round((self.total_steps - step) * self._seconds_per_step, 1)
        return Progress(step=step, total_steps=self.total_steps, epoch=epoch, eta_seconds=eta)
