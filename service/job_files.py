"""The files that a job's own code has written into the job's folder: listed and read.

Of a training they are what it wrote to relative paths through the Trainer: loggers' files, checkpoints of its
own callbacks. Of a script they are those in SYNCBN_CHECKPOINT_DIR. A symbolic link counts as the file that it
leads to, but only within the folder: a job must not show files of the machine that the API runs on.
"""

from __future__ import annotations

import heapq
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
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


@dataclass(frozen=True, kw_only=True)
class Listing:
    """The files of a job.

    left_out: entries besides: links to folders or to the outside, what is no regular file, names with control
    characters, and files after the first MOST.
    """

    files: list[JobFile]
    left_out: int


class JobFiles:
    """The files of one job. Every method blocks, and raises Unavailable if they cannot be read."""

    def __init__(self, settings: Settings, job: Job) -> None:
        self._settings, self._job = settings, job
        run = RunFolder(path=Path(settings.storage) / job.id)
        folder = run.script_checkpoints if job.runs_script else run.files
        # Not itself resolved: the job may have put a link in its place.
        self.folder = folder.parent.resolve() / folder.name

    def all(self) -> Listing:
        """Returns the files by path: at most MOST, the first ones."""
        if self._job.attempt:
            check_mounted(Path(self._settings.storage))
        try:
            found = list(_entries(self.folder))
        except OSError as error:
            raise Unavailable("the run folder", error.strerror or str(error)) from error
        files = heapq.nsmallest(MOST, (file for file in found if file), key=lambda file: file.path)
        return Listing(files=files, left_out=len(found) - len(files))

    def open(self, path: str) -> tuple[BinaryIO, int]:
        """Opens a file at its beginning and returns it with its size in bytes. Raises NotFound."""
        try:
            if "\0" in path or path.startswith("/"):
                raise FileNotFoundError
            file = _opened(self.folder, _inside(self.folder, self.folder / path))
        except (FileNotFoundError, NotADirectoryError, RuntimeError, UnicodeEncodeError):
            hint = f"syncbn files {self._job.id} lists those that it has"
            raise NotFound(f"job {self._job.id!r} has no file {path!r}; {hint}") from None
        except OSError as error:
            raise Unavailable("the run folder", error.strerror or str(error)) from error
        return file, os.fstat(file.fileno()).st_size


def _entries(folder: Path) -> Iterator[JobFile | None]:
    """Yields the files; None for an entry that is left out."""
    for root, folders, names in os.walk(folder):
        yield from (None for name in folders if Path(root, name).is_symlink())
        for name in names:
            path = Path(root, name)
            try:
                found = folder.joinpath(*_inside(folder, path)).lstat()
            except FileNotFoundError:  # deleted meanwhile, or a link that leads nowhere
                yield None
                continue
            shown = path.relative_to(folder).as_posix()
            if not shown.isprintable() or not stat.S_ISREG(found.st_mode):
                yield None
                continue
            saved_at = datetime.fromtimestamp(found.st_mtime, UTC)
            yield JobFile(path=shown, bytes=found.st_size, saved_at=saved_at)


def _inside(folder: Path, path: Path) -> tuple[str, ...]:
    """Returns the parts of the path below `folder` that `path` leads to. Raises FileNotFoundError."""
    real = path.resolve(strict=True)
    if not real.is_relative_to(folder):
        raise FileNotFoundError
    return real.relative_to(folder).parts


def _opened(folder: Path, parts: tuple[str, ...]) -> BinaryIO:
    """Opens a regular file below `folder`. Raises OSError.

    Race closed: the job replaces a part of the path by a link, after it was resolved; no link is followed.
    """
    if not parts:
        raise FileNotFoundError
    inside = os.open(folder, _FOLDER)
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
