"""Safe access to log files that ranks write: symbolic links are not followed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

from training.protocol import log_file

_CAREFUL = os.O_NOFOLLOW | os.O_NONBLOCK  # O_NONBLOCK: if the file is a pipe, open does not wait for a writer


def open_log(path: Path) -> BinaryIO:
    """Opens a log for reading. Raises OSError, also if `path` is a symbolic link."""
    return open(path, "rb", opener=lambda name, flags: os.open(name, flags | _CAREFUL))


def append_line(run_folder: Path, attempt: int, line: str) -> None:
    """Appends a line to the log of rank 0, while no rank runs. Raises OSError, also for a symbolic link."""
    path = log_file(run_folder, attempt, 0)
    path.parent.mkdir(parents=True, exist_ok=True)
    log = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | _CAREFUL, 0o644)
    try:
        size = os.fstat(log).st_size
        unfinished = size > 0 and os.pread(log, 1, size - 1) != b"\n"  # the last line has no newline
        os.write(log, f"{chr(10) * unfinished}{line}\n".encode(errors="replace"))
    finally:
        os.close(log)
