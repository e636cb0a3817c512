"""Metric points on their way to MLflow: in a file, so that neither a kill nor a long outage costs any.

    append ─▶ memory ─flush─▶ file ─▶ peek ─▶ MLflow ─▶ acknowledge
               ≤ 1 s          `spool`                   `spool.sent`: bytes of it that MLflow has

A point is a line, `time step value name`, in the order in which points were taken; names hold no line break.
`spool.sent` may lag behind: then points are sent again, with the times they had, and MLflow keeps one of two
points that are equal in all. One process at a time writes.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

log = logging.getLogger(__name__)

FLUSH_SECONDS = 1.0
LARGE = 64 << 20  # bytes; from there on a file of which everything was acknowledged is emptied
AT_ONCE = 2000  # points in one write
LONGEST_LINE = 1100  # bytes: three numbers and a name of 250 characters


class Point(NamedTuple):
    """`time`: milliseconds since 1970."""

    name: str
    value: float
    time: int
    step: int


@dataclass(frozen=True, kw_only=True)
class Batch:
    """`end`: the position after its last point, in bytes of the file or, `in_file` or not, in points."""

    points: list[Point]
    end: int
    in_file: bool


class Spool:
    """The spool at `path`, with what an earlier process left there; without a path, memory alone.

    `append` belongs to one thread and never waits; all else may be called from any. Where the file cannot be
    written (a full disk), points stay in memory, in order, and are sent from there: said once, never raised.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.last_steps: dict[str, int] = {}
        """By name, of the points in the file when it was opened."""
        self._fresh: deque[Point] = deque()  # not in the file
        self._gone = 0  # points that have left `_fresh`, for the file or for MLflow
        self._file: BinaryIO | None = None
        self._sent = self._end = 0  # bytes
        self._unsent = 0  # points in the file
        self._warned = False
        self._lock = threading.RLock()  # of everything but appending
        self._closing = threading.Event()
        self._writer = threading.Thread(target=self._flush_forever, name="spool-writer", daemon=True)
        if path is not None:
            self.flush()
            self._writer.start()

    def append(self, point: Point) -> None:
        self._fresh.append(point)

    def __len__(self) -> int:
        """Points that were not acknowledged."""
        return self._unsent + len(self._fresh)

    def flush(self) -> None:
        """Hands everything to the operating system: from there on a kill of this process cannot lose it."""
        with self._lock:
            if self.path is None or self._closing.is_set():
                return
            try:
                if self._file is None:
                    self._file = self._opened(self.path)
                while self._fresh:
                    self._write(self._file)
            except OSError as error:
                self._keep_in_memory(error)

    def sync(self) -> None:
        """Blocks until everything appended so far is on the disk: no crash of the machine can lose it."""
        with self._lock:
            self.flush()
            if self._file is not None:
                try:
                    os.fsync(self._file.fileno())
                except OSError as error:
                    self._keep_in_memory(error)

    def peek(self, most: int) -> Batch:
        """The first points that were not acknowledged, at most so many; none when there are none."""
        with self._lock:
            self.flush()
            if self._file is not None and self._sent < self._end:
                length = min(self._end - self._sent, most * LONGEST_LINE)
                lines = os.pread(self._file.fileno(), length, self._sent).split(b"\n")[:-1][:most]
                end = self._sent + sum(map(len, lines)) + len(lines)
                return Batch(points=[_point(line) for line in lines], end=end, in_file=True)
            points = _first(self._fresh, most)
            return Batch(points=points, end=self._gone + len(points), in_file=False)

    def acknowledge(self, batch: Batch) -> None:
        """MLflow has these, the last ones peeked. Those that a flush has moved meanwhile are peeked again."""
        with self._lock:
            if self._closing.is_set():
                return
            if batch.in_file:
                self._sent, self._unsent = batch.end, self._unsent - len(batch.points)
                with suppress(OSError):  # what cannot be noted is sent again
                    self._note()
            else:
                self._drop(batch.end - self._gone)

    def close(self) -> None:
        """What was not acknowledged stays in the file."""
        with self._lock:
            self.sync()
            self._closing.set()
            if self._file is not None:
                self._file.close()
                self._file = None
        if self._writer.is_alive():
            self._writer.join()

    def _flush_forever(self) -> None:
        while not self._closing.wait(FLUSH_SECONDS):
            self.flush()

    def _write(self, file: BinaryIO) -> None:
        points = _first(self._fresh, AT_ONCE)
        data = memoryview("".join(map(_line, points)).encode())
        try:
            written = 0
            while written < len(data):
                written += file.write(data[written:])
        except OSError:
            file.truncate(self._end)  # the file holds whole lines
            raise
        self._end += len(data)
        self._unsent += len(points)  # before they leave memory: `len` may count them twice, never not at all
        self._drop(len(points))

    def _drop(self, count: int) -> None:
        for _ in range(count):
            self._fresh.popleft()
            self._gone += 1

    def _opened(self, path: Path) -> BinaryIO:
        """Finds what an earlier process left; what follows the last whole line is cut off."""
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+b", buffering=0)
        sent = self._noted()
        self._sent = self._end = self._unsent = 0
        for line, point in _readable(path):
            self._end += len(line)
            self._unsent += 1
            self.last_steps[point.name] = max(point.step, self.last_steps.get(point.name, 0))
            if self._end == sent:
                self._sent, self._unsent = sent, 0
        file.truncate(self._end)
        return file

    def _note(self) -> None:
        if self._sent == self._end >= LARGE:
            assert self._file is not None
            self._sent_path.unlink(missing_ok=True)  # first: it must not be taken for one of the next points
            self._file.truncate(0)
            self._sent = self._end = 0
            return
        with self._sent_path.open("r+b" if self._sent_path.exists() else "wb") as file:
            file.write(b"%020d\n" % self._sent)  # over the last one: never half of it, and no room needed

    def _noted(self) -> int:
        try:
            return int(self._sent_path.read_bytes())
        except (OSError, ValueError):  # not there, or empty
            return 0

    @property
    def _sent_path(self) -> Path:
        assert self.path is not None
        return self.path.with_name(f"{self.path.name}.sent")

    def _keep_in_memory(self, error: OSError) -> None:
        if not self._warned:
            self._warned = True
            log.warning("%s: metrics are kept in memory; a crash would lose those that MLflow has not", error)


def _first(points: deque[Point], most: int) -> list[Point]:
    return [points[index] for index in range(min(most, len(points)))]  # an iterator would forbid appending


def _line(point: Point) -> str:
    return f"{point.time} {point.step} {point.value!r} {point.name}\n"


def _point(line: bytes) -> Point:
    time, step, value, name = line.decode().split(" ", 3)
    return Point(name, float(value), int(time), int(step))


def _readable(path: Path) -> Iterator[tuple[bytes, Point]]:
    """Lines, up to the first that a crash has left half written."""
    with path.open("rb") as lines:
        for line in lines:
            try:
                point = _point(line.removesuffix(b"\n"))
            except ValueError:
                return
            if not line.endswith(b"\n"):
                return
            yield line, point
