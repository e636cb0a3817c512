"""A folder on this machine for one process alone, which does not outlive it for long, however it ends."""

from __future__ import annotations

import atexit
import fcntl
import os
import shutil
import tempfile
import time
from contextlib import suppress
from pathlib import Path

_PREFIX = "syncbn-agent-"
_SECONDS_TO_HOLD = 60.0


def own_folder() -> Path:
    """A new folder for this process alone. It goes with the process or, if that was killed, when the next
    agent on this machine begins.
    """
    for left in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with suppress(OSError):
            if _is_abandoned(left):
                shutil.rmtree(left, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
    _hold(folder)  # for as long as this process lives: the descriptor is never closed, and not inherited
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _is_abandoned(folder: Path) -> bool:
    found = folder.stat()
    # Race closed: another agent of this machine has made its folder, and does not hold it yet.
    if found.st_uid != os.getuid() or time.time() - found.st_mtime < _SECONDS_TO_HOLD:
        return False
    try:
        os.close(_hold(folder))
    except BlockingIOError:
        return False
    return True


def _hold(folder: Path) -> int:
    """Raises BlockingIOError where another process has it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor
