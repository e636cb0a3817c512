"""The files that a job's own code has written into the job's folder: listed and read.

Of a training they are what it wrote to relative paths through the Trainer: loggers' files, checkpoints of its
own callbacks. Of a script they are those in SYNCBN_CHECKPOINT_DIR. Symbolic links are neither listed nor
followed, because a job must not show files of the machine that the API runs on.
"""

from __future__ import annotations

import heapq
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from service.checkpoints import check_mounted
from service.errors import NotFound, Unavailable
from service.jobs.job import Job
from service.settings import Settings
from training.run_dir import RunFolder

MOST = 10_000
"""How many files are listed."""


@dataclass(frozen=True, kw_only=True)
class JobFile:
    """A file of a job. path: in the folder, with /. saved_at: when it was last changed."""

    path: str
    bytes: int
    saved_at: datetime


class JobFiles:
    """The files of one job. Every method blocks, and raises Unavailable if they cannot be read."""

    def __init__(self, settings: Settings, job: Job) -> None:
        self._settings, self._job = settings, job
        run = RunFolder(path=Path(settings.storage) / job.id)
        self.folder = run.script_checkpoints if job.runs_script else run.files

    def all(self) -> list[JobFile]:
        """Returns the files by path: at most MOST, the first ones."""
        if self._job.attempt:
            check_mounted(Path(self._settings.storage))
        try:
            return heapq.nsmallest(MOST, _files(self.folder), key=lambda file: file.path)
        except OSError as error:
            raise Unavailable("the run folder", error.strerror or str(error)) from error

    def open(self, path: str) -> tuple[BinaryIO, int]:
        """Opens a file at its beginning and returns it with its size in bytes. Raises NotFound."""
        parts = PurePosixPath(path).parts
        try:
            if not parts or "\0" in path or any(part in {"/", "..", "."} for part in parts):
                raise FileNotFoundError
            file = _opened(self.folder, parts)
        except OSError as error:
            if isinstance(error, FileNotFoundError | NotADirectoryError) or error.errno in _LINKS:
                hint = f"syncbn files {self._job.id} lists those that it has"
                raise NotFound(f"job {self._job.id!r} has no file {path!r}; {hint}") from None
            raise Unavailable("the run folder", error.strerror or str(error)) from error
        return file, os.fstat(file.fileno()).st_size


_LINKS = (40, 62)  # ELOOP of Linux and macOS: a symbolic link where none is followed


def _files(folder: Path) -> Iterator[JobFile]:
    for root, _, names in os.walk(folder):
        for name in names:
            path = Path(root, name)
            try:
                found = path.lstat()
                relative = path.relative_to(folder).as_posix()
                relative.encode()  # a name that is no text cannot be shown
            except (FileNotFoundError, UnicodeEncodeError):  # deleted meanwhile
                continue
            if stat.S_ISREG(found.st_mode):
                saved_at = datetime.fromtimestamp(found.st_mtime, UTC)
                yield JobFile(path=relative, bytes=found.st_size, saved_at=saved_at)


def _opened(folder: Path, parts: tuple[str, ...]) -> BinaryIO:
    """Opens a regular file below `folder` without following a link on the way. Raises OSError."""
    inside = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for part in parts[:-1]:
            outside, inside = inside, os.open(part, _FOLDER, dir_fd=inside)
            os.close(outside)
        file = os.open(parts[-1], _FILE, dir_fd=inside)
    finally:
        os.close(inside)
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise FileNotFoundError
    return os.fdopen(file, "rb")


_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK  # O_NONBLOCK: opening a pipe does not wait for a writer
