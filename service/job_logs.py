"""The output of a job's ranks, read from log files by byte offset.

RUN/logs/attempt-N/rank-K.log holds everything that rank K printed in attempt N. Files are append-only, so an
offset stays valid forever. Older versions kept one log for all ranks in the tracking server.
Nothing here holds a whole file in memory.
"""

from __future__ import annotations

import codecs
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from service.backends.tracking import Results
from service.errors import Unavailable
from service.jobs.job import ACTIVE, Job
from service.log_files import open_log
from training.protocol import log_file, log_folder

CHUNK = 1 << 16
"""Maximum number of bytes per read. A longer line is returned in pieces."""

_RANK_FILE = re.compile(r"rank-(0|[1-9]\d{0,8})\.log")
_ATTEMPT_FOLDER = re.compile(r"attempt-([1-9]\d{0,8})")


@dataclass(frozen=True, kw_only=True)
class LogFile:
    """The output of one rank in one attempt."""

    attempt: int
    rank: int
    path: Path

    @property
    def header(self) -> str:
        return f"==> attempt {self.attempt}, rank {self.rank} <=="

    def size(self) -> int:
        with _opened(self.path) as file:
            return os.fstat(file.fileno()).st_size

    def read(self, offset: int, limit: int) -> bytes:
        """Returns up to `limit` bytes from `offset`; fewer only at the end of the file."""
        with _opened(self.path) as file:
            file.seek(offset)
            return file.read(limit)


@dataclass(frozen=True, kw_only=True)
class ArchivedLog:
    """The output of all ranks in one attempt that an older version ran, from the tracking server."""

    attempt: int
    content: bytes = field(repr=False)
    rank: None = None

    @property
    def header(self) -> str:
        return f"==> attempt {self.attempt} <=="

    def size(self) -> int:
        return len(self.content)

    def read(self, offset: int, limit: int) -> bytes:
        return self.content[offset : offset + limit]


Log = LogFile | ArchivedLog


@dataclass(frozen=True, kw_only=True)
class View:
    """The logs that a reader wants: one rank or all (None), one attempt or all (None)."""

    rank: int | None = None
    attempt: int | None = None

    def attempts(self, job: Job) -> range:
        first, last = (1, job.attempt) if self.attempt is None else (self.attempt, self.attempt)
        return range(first, last + 1)

    def needs_headers(self, job: Job, logs: list[Log]) -> bool:
        """Returns whether the reader needs headers to tell the logs apart."""
        return len(self.attempts(job)) > 1 or len(logs) > 1


class JobLogs:
    """Finds the logs of one job.

    Every method raises `Unavailable` if the storage cannot be read, or if the tracking server is needed and
    does not answer.
    """

    def __init__(self, storage: str, results: Results) -> None:
        self._storage = Path(storage)
        self._results = results
        self._archived: tuple[int, list[Log]] = (0, [])

    def of(self, job: Job, attempt: int, rank: int | None = None) -> list[Log]:
        """Returns the logs of an attempt, ordered by rank; with `rank`, only that rank's, if it exists."""
        run_folder = self._storage / job.id
        ranks = _numbers(log_folder(run_folder, attempt), _RANK_FILE, os.DirEntry.is_file)
        if ranks is None:
            _check_readable(self._storage)
            return self._of_older_version(job, attempt) if rank is None else []
        return [
            LogFile(attempt=attempt, rank=number, path=log_file(run_folder, attempt, number))
            for number in ranks
            if rank in {None, number}
        ]

    def sizes(self, job: Job) -> tuple[tuple[int, int], ...]:
        """Returns the rank and size of each log of the latest attempt, without asking the tracking server."""
        run_folder = self._storage / job.id
        ranks = _numbers(log_folder(run_folder, job.attempt), _RANK_FILE, os.DirEntry.is_file)
        if ranks is None:
            _check_readable(self._storage)
            return ()
        files = [(rank, log_file(run_folder, job.attempt, rank)) for rank in ranks]
        return tuple(
            (rank, LogFile(attempt=job.attempt, rank=rank, path=path).size()) for rank, path in files
        )

    def latest(self, job: Job, view: View) -> int | None:
        """Returns the last attempt that has any output; None if no attempt has."""
        return next(
            (
                number
                for number in reversed(view.attempts(job))
                if any(log.size() for log in self.of(job, number, view.rank))
            ),
            None,
        )

    def _of_older_version(self, job: Job, attempt: int) -> list[Log]:
        """Returns the archived log. The tracking server's last answer is cached because followers poll."""
        if job.run is None or not self._may_be_older(job, attempt):
            return []
        if self._archived[0] != attempt:
            text = self._results.download(job.run, f"logs/attempt-{attempt}.log")
            logs: list[Log] = [ArchivedLog(attempt=attempt, content=text.encode())] if text else []
            self._archived = (attempt, logs)
        return self._archived[1]

    def _may_be_older(self, job: Job, attempt: int) -> bool:
        """Returns whether an older version may have run an attempt that has no log folder.

        If one did, no earlier attempt has a folder.
        """
        if attempt == job.attempt and (job.start or job.state in ACTIVE):
            return False
        on_disk = _numbers(
            log_folder(self._storage / job.id, attempt).parent, _ATTEMPT_FOLDER, os.DirEntry.is_dir
        )
        return not on_disk or attempt < min(on_disk)


def tail_offset(log: Log, lines: int) -> int:
    """Returns the byte offset at which the last `lines` lines begin. Reads backwards, block by block."""
    size, wanted = log.size(), lines
    if not lines:
        return size
    position = size - 1  # a newline in the last byte ends the last line and starts no new one
    while position > 0:
        start = max(position - CHUNK, 0)
        block = log.read(start, position - start)
        if (found := block.count(b"\n")) >= wanted:
            return start + _nth_newline_from_the_end(block, wanted) + 1
        wanted, position = wanted - found, start
    return 0


def _nth_newline_from_the_end(block: bytes, number: int) -> int:
    position = len(block)
    for _ in range(number):
        position = block.rfind(b"\n", 0, position)
    return position


def lines_in(data: bytes, *, last: bool) -> Iterator[tuple[str, int]]:
    """Yields each complete line of `data` and the offset in `data` at which it ends, newline included.

    data: up to CHUNK + 1 bytes. A line longer than CHUNK is cut between two characters.
    last: no more bytes will follow, so the text after the last newline counts as a line.
    """
    start = 0
    while (end := data.find(b"\n", start)) >= 0:
        yield _text(data[start:end]), end + 1
        start = end + 1
    rest = data[start:]
    if len(rest) > CHUNK:
        text, size = _whole_characters(rest[:CHUNK])
        yield text, start + size
    elif rest and last:
        yield _text(rest), len(data)


def _text(line: bytes) -> str:
    return line.decode(errors="replace")


def _whole_characters(data: bytes) -> tuple[str, int]:
    """Returns the text without a character that is cut off at the end, and its length in bytes."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    text = decoder.decode(data)
    return text, len(data) - len(decoder.getstate()[0])


def _numbers(folder: Path, names: re.Pattern[str], is_kind: Callable[..., bool]) -> list[int] | None:
    """Returns the numbers in the matching names, sorted; None if the folder does not exist."""
    try:
        with os.scandir(folder) as entries:
            # User code may write here. It must not make this process follow a link to another file or block
            # on a pipe.
            matches = [names.fullmatch(each.name) for each in entries if is_kind(each, follow_symlinks=False)]
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _unreadable(folder, error) from error
    return sorted(int(match[1]) for match in matches if match)


def _check_readable(folder: Path) -> None:
    try:
        folder.stat()
    except OSError as error:
        raise _unreadable(folder, error) from error


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """Opens the file for one read: a network file system shows other machines' writes only after an open."""
    try:
        with open_log(path) as file:
            yield file
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> Unavailable:
    return Unavailable("the run folder", f"{path}: {error.strerror}")
