"""A temporary folder for one process, deleted after it ends, also after a kill."""

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
_LOCKED = ".locked"
_SECONDS_TO_LOCK = 60.0


def own_folder() -> Path:
    """Creates a folder for this process alone.

    It is deleted when the process exits or, if the process was killed, by the next `remove_abandoned` on this
    machine, which the next agent calls, too.
    """
    remove_abandoned()
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
    _lock(folder)  # for the life of this process: the descriptor is never closed, and not inherited
    (folder / _LOCKED).touch()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def remove_abandoned() -> None:
    """Deletes the folders of this user's processes that were killed."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with suppress(OSError):
            if _is_abandoned(folder):
                shutil.rmtree(folder, ignore_errors=True)


def _is_abandoned(folder: Path) -> bool:
    info = folder.stat()
    # Race closed: another process has created its folder, and has not locked it yet.
    is_new = time.time() - info.st_mtime < _SECONDS_TO_LOCK and not (folder / _LOCKED).exists()
    if info.st_uid != os.getuid() or is_new:
        return False
    try:
        os.close(_lock(folder))
    except BlockingIOError:
        return False
    return True


def _lock(folder: Path) -> int:
    """Locks `folder` and returns the descriptor. Raises BlockingIOError if another process holds the lock."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def matplotlib_folder(folder: Path) -> dict[str, str]:
    """Returns MPLCONFIGDIR for the ranks: in `folder` if matplotlib's default folder cannot be written.

    Without it matplotlib would create one in the fork server, and every rank would delete that at exit.
    """
    if given := os.environ.get("MPLCONFIGDIR"):
        return {"MPLCONFIGDIR": given}
    with suppress(OSError, RuntimeError):  # RuntimeError: the user has no home folder
        own = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "matplotlib"
        own.mkdir(parents=True, exist_ok=True)
        if os.access(own, os.W_OK):
            return {}
    return {"MPLCONFIGDIR": str(folder / "matplotlib")}


def compiler_folder(folder: Path) -> dict[str, str]:
    """Returns TORCHINDUCTOR_CACHE_DIR for the ranks: in `folder`.

    torch's own default has a name in /tmp that another user of the machine can create first, and
    `torch.compile` runs the code that it finds there.
    """
    return {"TORCHINDUCTOR_CACHE_DIR": str(folder / "torchinductor")}
