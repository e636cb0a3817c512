"""The spool: a file in which metric points wait for MLflow, so that no kill or outage loses any.

    append ─▶ memory ─flush─▶ file ─▶ peek ─▶ MLflow ─▶ acknowledge
               ≤ 1 s          `spool`                   `spool.sent`: number of its bytes that MLflow has

Each point is a line, `time step value name`, in the order of `append`; names contain no line break.
`spool.truncated` is touched before points are removed from the file, which MLflow alone has from then on.
`spool.sent` may lag behind. Then points are sent twice with the same times, and MLflow keeps one of two equal
points. Only one process writes at a time.
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
from typing import BinaryIO

from training.protocol import Point
from training.run_dir import RunFolder

log = logging.getLogger(__name__)

FLUSH_SECONDS = 1.0
TRUNCATE_BYTES = 64 << 20  # a file of at least this size is truncated once all of it is acknowledged
POINTS_PER_WRITE = 2000  # points in one write
LONGEST_LINE = 1100  # bytes: three numbers and a name of 250 characters


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Points to send. end: the position after the last one, in bytes if `in_file`, otherwise in points."""

    points: list[Point]
    end: int
    in_file: bool


class Spool:
    """The spool in the file `path`, including points that an earlier process left; None: in memory only.

    Only one thread may call `append`, which never blocks; any thread may call the other methods. If the file
    cannot be written (a full disk), points stay in memory, in order, and are sent from there. This is logged
    once, and no method raises for it.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.last_steps: dict[str, int] = {}
        """The last step of each metric in the file when it was opened."""
        self._in_memory: deque[Point] = deque()  # points that are not in the file
        self._removed = 0  # number of points moved from `_in_memory` to the file or to MLflow
        self._file: BinaryIO | None = None
        self._sent = self._end = 0  # bytes of the file that MLflow has; all bytes
        self._unsent = 0  # points in the file that MLflow does not have
        self._warned = False
        self._lock = threading.RLock()  # held by everything except `append`
        self._closing = threading.Event()
        self._writer = threading.Thread(target=self._flush_forever, name="spool-writer", daemon=True)
        if path is not None:
            self.flush()
            self._writer.start()

    def append(self, point: Point) -> None:
        """Adds a point in memory. Never blocks; only one thread may call it."""
        self._in_memory.append(point)

    def __len__(self) -> int:
        """Returns the number of points that are not acknowledged."""
        return self._unsent + len(self._in_memory)

    def flush(self) -> None:
        """Writes all points to the file, without fsync: then a kill of this process cannot lose them."""
        with self._lock:
            if self.path is None or self._closing.is_set():
                return
            try:
                if self._file is None:
                    self._file = self._open(self.path)
                while self._in_memory:
                    self._write(self._file)
            except OSError as error:
                self._keep_in_memory(error)

    def sync(self) -> None:
        """Blocks until all points are on disk: then a crash of the machine cannot lose them."""
        with self._lock:
            self.flush()
            if self._file is not None:
                try:
                    os.fsync(self._file.fileno())
                except OSError as error:
                    self._keep_in_memory(error)

    def peek(self, limit: int) -> Batch:
        """Returns the first points that are not acknowledged, at most `limit`. The batch may be empty."""
        with self._lock:
            self.flush()
            if self._file is not None and self._sent < self._end:
                length = min(self._end - self._sent, limit * LONGEST_LINE)
                lines = os.pread(self._file.fileno(), length, self._sent).split(b"\n")[:-1][:limit]
                end = self._sent + sum(map(len, lines)) + len(lines)
                return Batch(points=[_point(line) for line in lines], end=end, in_file=True)
            points = _first(self._in_memory, limit)
            return Batch(points=points, end=self._removed + len(points), in_file=False)

    def acknowledge(self, batch: Batch) -> None:
        """Records that MLflow has `batch`, the result of the last `peek`.

        If a flush has moved points of the batch to the file meanwhile, `peek` returns those again.
        """
        with self._lock:
            if self._closing.is_set():
                return
            if batch.in_file:
                self._sent, self._unsent = batch.end, self._unsent - len(batch.points)
                with suppress(OSError):  # points whose acknowledgement is not stored are sent again
                    self._store_sent()
            else:
                self._drop(batch.end - self._removed)

    def close(self) -> None:
        """Flushes and closes the file; points that are not acknowledged stay in it. Idempotent."""
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
        points = _first(self._in_memory, POINTS_PER_WRITE)
        data = memoryview("".join(map(_line, points)).encode())
        try:
            written = 0
            while written < len(data):
                written += file.write(data[written:])
        except OSError:
            file.truncate(self._end)  # removes an incomplete line
            raise
        self._end += len(data)
        self._unsent += len(points)  # before `_drop`: `len` may count points twice, but never miss them
        self._drop(len(points))

    def _drop(self, count: int) -> None:
        for _ in range(count):
            self._in_memory.popleft()
            self._removed += 1

    def _open(self, path: Path) -> BinaryIO:
        """Opens the file, counts the points that an earlier process left, and cuts off an incomplete line."""
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+b", buffering=0)
        sent = self._stored_sent()
        self._sent = self._end = self._unsent = 0
        for line, point in _readable(path):
            self._end += len(line)
            self._unsent += 1
            self.last_steps[point.name] = max(point.step, self.last_steps.get(point.name, 0))
            if self._end == sent:
                self._sent, self._unsent = sent, 0
        file.truncate(self._end)
        return file

    def _store_sent(self) -> None:
        if self._sent == self._end >= TRUNCATE_BYTES:
            assert self._file is not None
            assert self.path is not None
            RunFolder.truncated_mark(self.path).touch()  # readers must not take the file for the whole run
            self._sent_path.unlink(missing_ok=True)  # first: its offset must not apply to later points
            self._file.truncate(0)
            self._sent = self._end = 0
            return
        with self._sent_path.open("r+b" if self._sent_path.exists() else "wb") as file:
            file.write(b"%020d\n" % self._sent)  # in place: the size is fixed, so it needs no disk space

    def _stored_sent(self) -> int:
        try:
            return int(self._sent_path.read_bytes())
        except (OSError, ValueError):  # missing or empty
            return 0

    @property
    def _sent_path(self) -> Path:
        assert self.path is not None
        return self.path.with_name(f"{self.path.name}.sent")

    def _keep_in_memory(self, error: OSError) -> None:
        if not self._warned:
            self._warned = True
            log.warning("%s: metrics are kept in memory; a crash would lose those not sent to MLflow", error)


def _first(points: deque[Point], limit: int) -> list[Point]:
    return [points[index] for index in range(min(limit, len(points)))]  # an iterator would fail on `append`


def _line(point: Point) -> str:
    return f"{point.timestamp} {point.step} {point.value!r} {point.name}\n"


def _point(line: bytes) -> Point:
    timestamp, step, value, name = line.decode().split(" ", 3)
    return Point(name, float(value), int(timestamp), int(step))


def _readable(path: Path) -> Iterator[tuple[bytes, Point]]:
    """Yields the lines and their points, up to the first incomplete line."""
    with path.open("rb") as lines:
        for line in lines:
            try:
                point = _point(line.removesuffix(b"\n"))
            except ValueError:
                return
            if not line.endswith(b"\n"):
                return
            yield line, point
