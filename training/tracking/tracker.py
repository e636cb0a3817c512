"""Where the metrics of a run go. One writer: rank 0. The other ranks hold a `NullTracker`.

Tracker           the protocol
├── NullTracker   takes everything, keeps nothing
├── ProgressTracker  tells the agent where the run stands (training.rank.progress)
├── JsonLines     one JSON object a step, in a file
├── MlflowTracker by way of a spool, in the background (training.tracking.mlflow_tracker)
└── Fanout        several at once
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


class Tracker(Protocol):
    def log(self, step: int, epoch: int, metrics: Mapping[str, float]) -> None:
        """Takes metrics of a step; never blocks on a network. A (metric, step) it has is not taken again."""

    def progress(self, progress: Progress) -> None:
        """Replaces what is known of where the run stands."""

    def params(self, params: Mapping[str, str]) -> None:
        """Adds parameters of the run; one that is known keeps its value. Never blocks on a network."""

    def tags(self, tags: Mapping[str, str]) -> None:
        """Replaces what is known under these names; never blocks on a network."""

    def sync(self) -> None:
        """Blocks until no crash can lose what was logged so far: called at every checkpoint."""

    def history(self, prefixes: tuple[str, ...] = ("",)) -> History:
        """The metrics of the whole run so far whose names begin so, those of earlier attempts included."""

    def artifact(self, path: Path) -> None:
        """Keeps a file under its name."""

    def model(self, model: nn.Module, example: Any) -> None:
        """Keeps the trained model; `example` is one input batch for its signature."""

    def close(self, *, patient: bool = True) -> None:
        """Blocks until everything is written, or says what could not be.

        Not `patient`, it waits seconds, not minutes, for a server that is away: another attempt will write
        the rest, or something worse has happened.
        """


class NullTracker:
    """Takes everything, keeps nothing."""

    def log(self, step: int, epoch: int, metrics: Mapping[str, float]) -> None: ...

    def progress(self, progress: Progress) -> None: ...

    def params(self, params: Mapping[str, str]) -> None: ...

    def tags(self, tags: Mapping[str, str]) -> None: ...

    def sync(self) -> None: ...

    def history(self, prefixes: tuple[str, ...] = ("",)) -> History:  # noqa: ARG002
        return {}

    def artifact(self, path: Path) -> None: ...

    def model(self, model: nn.Module, example: Any) -> None: ...

    def close(self, *, patient: bool = True) -> None: ...


class JsonLines(NullTracker):
    """`metrics.jsonl`: {"step", "epoch", and every metric of that step by name} a line, in order of steps.

    A line is written when the next step begins, because an epoch's metrics belong to its last step. Opened
    again on the same file (a resumed run), it goes on at the last step there, whose metrics may be
    incomplete; half a line, left by a crash, is written over. What JSON has no number for is null.
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
        self._put()
        os.fsync(self._file.fileno())

    def _write(self) -> None:
        if self._pending:
            self._put()
            self._end = self._file.tell()
            self.written = self._pending["step"]
            self._pending = {}

    def _put(self) -> None:
        """The pending line, over the one of the same step that may be there."""
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

    def close(self, *, patient: bool = True) -> None:  # noqa: ARG002
        self._write()
        self._file.close()


def _rows(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """Each whole line of the file and where it starts; null is NaN again."""
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
    """Several trackers at once; the history is the first one's that has any."""

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        self.trackers = trackers

    def log(self, step: int, epoch: int, metrics: Mapping[str, float]) -> None:
        for tracker in self.trackers:
            tracker.log(step, epoch, metrics)

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

    def model(self, model: nn.Module, example: Any) -> None:
        for tracker in self.trackers:
            tracker.model(model, example)

    def close(self, *, patient: bool = True) -> None:
        with ExitStack() as stack:  # one that fails does not keep the others open
            for tracker in self.trackers:
                stack.callback(tracker.close, patient=patient)


class Eta:
    """Time left, from the pace of the last steps (an exponential mean, so that a slow start is forgotten)."""

    def __init__(self, total_steps: int | None) -> None:
        self.total_steps = total_steps
        self._seconds_per_step: float | None = None
        self._last: tuple[int, float] | None = None

    def at(self, step: int, epoch: int, now: float | None = None) -> Progress:
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
