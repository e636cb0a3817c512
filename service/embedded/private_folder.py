"""The folder of the embedded stack: for its owner alone, whatever the umask is."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from pathlib import Path

from service.errors import Refused

_OURS = ("stack.json", "syncbn.db", "ray.token")


def make_private(folder: Path, databases: Iterable[str]) -> None:
    """Creates the folder, or closes one of an earlier `up` to others; the SQLite files in it as well.

    Raises Refused for what cannot be such a folder. One that holds other things keeps its permissions: it
    may be a home directory, or /tmp.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if _is_ours(folder):
            folder.chmod(0o700)
        for name in databases:
            _touch_private(folder / name)
    except OSError as error:
        raise Refused(f"--data-dir {folder} cannot be used: {error.strerror}: name a folder") from None


def _is_ours(folder: Path) -> bool:
    found = folder.stat()
    shared = bool(found.st_mode & stat.S_ISVTX)
    empty = not any(folder.iterdir())
    used = empty or any((folder / name).exists() for name in _OURS)
    return used and not shared and found.st_uid == os.geteuid()


def _touch_private(path: Path) -> None:
    """SQLite takes an empty file for a new database, and gives its permissions to those that it adds."""
    path.touch(mode=0o600)
    path.chmod(0o600)
