"""Log files that ranks write, opened by the scheduler: no link that a rank has left there is followed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

from training.protocol import log_file

_CAREFUL = os.O_NOFOLLOW | os.O_NONBLOCK  # nor does it wait for the writer of a pipe in the file's place


def open_log(path: Path) -> BinaryIO:
    """For reading. Raises OSError, for a link too."""
    return open(path, "rb", opener=lambda name, flags: os.open(name, flags | _CAREFUL))


def append_line(run_folder: Path, attempt: int, line: str) -> None:
    """Adds a line to the log of rank 0, while no rank is at work. Raises OSError, for a link too."""
    path = log_file(run_folder, attempt, 0)
    path.parent.mkdir(parents=True, exist_ok=True)
    log = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | _CAREFUL, 0o644)
    try:
        size = os.fstat(log).st_size
        begun = size > 0 and os.pread(log, 1, size - 1) != b"\n"  # a line that was never finished
        os.write(log, f"{chr(10) * begun}{line}\n".encode(errors="replace"))
    finally:
        os.close(log)
