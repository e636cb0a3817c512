"""Safe access to log files that ranks write: symbolic links are not followed."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from training.protocol import log_file

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
_CAREFUL = os.O_NOFOLLOW | os.O_NONBLOCK  # O_NONBLOCK: if the file is a pipe, open does not wait for a writer


def open_log(path: Path) -> BinaryIO:
    """Opens a log for reading. Raises OSError, also if `path` is a symbolic link."""
    return open(path, "rb", opener=lambda name, flags: os.open(name, flags | _CAREFUL))


def read_log(path: Path, start: int, length: int) -> bytes:
    """Returns up to `length` bytes from a position on. Raises OSError, also if `path` is a symbolic link."""
    log = os.open(path, os.O_RDONLY | os.O_CLOEXEC | _CAREFUL)
    try:
        return os.pread(log, length, start)
    finally:
        os.close(log)


def append_line(run_folder: Path, attempt: int, line: str) -> None:
    """Appends a line to the log of rank 0, while no rank runs. Raises OSError, also for a symbolic link."""
    path = log_file(run_folder, attempt, 0)
    run_folder.mkdir(parents=True, exist_ok=True)
    with _inside(run_folder, path.parent.relative_to(run_folder).parts) as folder:
        log = os.open(path.name, os.O_RDWR | os.O_CREAT | os.O_APPEND | _CAREFUL, 0o644, dir_fd=folder)
    try:
        size = os.fstat(log).st_size
        unfinished = size > 0 and os.pread(log, 1, size - 1) != b"\n"  # the last line has no newline
        os.write(log, f"{chr(10) * unfinished}{line}\n".encode(errors="replace"))
    finally:
        os.close(log)


@contextmanager
def _inside(folder: Path, names: Iterable[str]) -> Iterator[int]:
    """Opens a folder below another one, and creates what is missing. Raises OSError for a symbolic link."""
    opened = os.open(folder, _FOLDER)
    try:
        for name in names:
            with suppress(FileExistsError):
                os.mkdir(name, dir_fd=opened)
            outside, opened = opened, os.open(name, _FOLDER, dir_fd=opened)
            os.close(outside)
        yield opened
    finally:
        os.close(opened)
