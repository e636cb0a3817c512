"""The points of a job's metrics, read from its spool by byte offset.

RUN/spool holds every point that the job has logged, one a line (`training.tracking.spool`), from the first
one on: the tracking server has the same, but answers more slowly. It is append-only, with two exceptions: it
is emptied when it is large, and it is another file after a retry from step 0. A `Position` says of which file
it is, so that a reader begins again when there is another one.
Nothing here holds a whole file in memory.
"""

from __future__ import annotations

import enum
import os
import re
import stat
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Self

from service.errors import Unavailable
from service.log_files import read_log
from training.metric_names import is_layer_detail
from training.run_dir import RunFolder

CHUNK = 2 << 20
"""Maximum number of bytes of the file per read."""
_MOST_FILES = 10_000
"""For how many jobs the names of files are kept: to make them takes longer than to look at the files."""
_POSITION = re.compile(r"([0-9a-f]{1,32}\.[0-9a-f]{1,32})-(\d{1,15})")


class Kind(enum.StrEnum):
    """Which points a reader wants."""

    CURVES = "curves"
    """All except those of single layers."""
    NORM = "norm"
    """Those of single layers."""

    def wants(self, line: bytes) -> bool:
        """Returns whether a line is one of these points; False if it is not a point."""
        fields = line.split(b" ", 3)
        name = fields[3] if len(fields) == 4 else b""
        return bool(name) and is_layer_detail(name.decode(errors="replace")) is (self is Kind.NORM)


@dataclass(frozen=True, kw_only=True)
class Position:
    """A place in a spool. generation: identifies the file's content; "" if there is no file."""

    generation: str = ""
    offset: int = 0

    def __str__(self) -> str:
        return f"{self.generation}-{self.offset}" if self.generation else ""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parses what `str` has returned; the beginning for anything else."""
        match = _POSITION.fullmatch(text)
        return cls(generation=match[1], offset=int(match[2])) if match else cls()


@dataclass(frozen=True, kw_only=True)
class SpoolLook:
    """What a spool is at a moment. emptied: it lacks the job's first points."""

    generation: str
    size: int
    emptied: bool

    @property
    def end(self) -> Position:
        """The position after everything that is in the spool."""
        return Position(generation=self.generation, offset=self.size)


@dataclass(frozen=True, kw_only=True)
class Portion:
    """Complete lines of a spool.

    position: after them. more: there are further lines already. restarted: the reader's position is of
    another file, and these lines are the first ones. earlier: the spool lacks the job's first points.
    """

    text: bytes
    position: Position
    more: bool
    restarted: bool
    earlier: bool


class JobPoints:
    """Reads spools in a storage. Every method raises `Unavailable` if one cannot be read."""

    def __init__(self, storage: str) -> None:
        self._files = lru_cache(_MOST_FILES)(partial(_files, Path(storage)))

    def read(
        self, job_id: str, after: Position, kind: Kind, limit: int = CHUNK, *, look: SpoolLook | None = None
    ) -> Portion:
        """Returns the lines after a position, of up to `limit` bytes in the file. look: if it is known."""
        look = look or self.look(job_id)
        generation, size, emptied = look.generation, look.size, look.emptied
        restarted = after.generation != generation or after.offset > size
        start = 0 if restarted else after.offset
        data = self._read(job_id, start, min(limit, size - start)) if size > start else b""
        end = data.rfind(b"\n") + 1
        if not end and len(data) == limit:
            end = limit  # not a spool's line, which is short
        return Portion(
            text=_chosen(data[:end], kind),
            position=Position(generation=generation, offset=start + end),
            more=start + len(data) < size and end > 0,
            restarted=restarted and bool(after.generation),
            earlier=emptied or not size,
        )

    def look(self, job_id: str) -> SpoolLook:
        """Returns what the spool is now."""
        path, mark_path = self._files(job_id)
        found = _stat(path)
        if found is None or not stat.S_ISREG(found.st_mode):
            return SpoolLook(generation="", size=0, emptied=False)
        mark = _stat(mark_path)
        generation = f"{found.st_ino:x}.{mark.st_mtime_ns if mark else 0:x}"
        return SpoolLook(generation=generation, size=found.st_size, emptied=mark is not None)

    def _read(self, job_id: str, start: int, length: int) -> bytes:
        path, _ = self._files(job_id)
        try:
            return read_log(path, start, length)
        except FileNotFoundError:
            return b""
        except OSError as error:
            raise _unreadable(path, error) from error


def _chosen(data: bytes, kind: Kind) -> bytes:
    if kind is Kind.CURVES and b" norm/" not in data:
        return data
    return b"".join(line + b"\n" for line in data.split(b"\n") if kind.wants(line))


def _files(storage: Path, job_id: str) -> tuple[Path, Path]:
    """Returns a job's spool, and the mark that it lacks the first points."""
    spool = RunFolder(path=storage / job_id).spool
    return spool, RunFolder.truncated_mark(spool)


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.stat(follow_symlinks=False)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> Unavailable:
    return Unavailable("the run folder", f"{path}: {error.strerror}")
