"""The data folder of the embedded stack: accessible to its owner only, whatever the umask.

Jobs of another system user pass through it, and through the folder of the runs, to their own; they can list
neither.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterable
from pathlib import Path

from service.errors import Refused

_OURS = ("stack.json", "syncbn.db", "ray.token")


def make_private(
    folder: Path, databases: Iterable[str], folders: Iterable[str] = (), passable: Collection[str] = ()
) -> None:
    """Creates the folder, or makes one of an earlier `up` private, together with what is kept in it.

    databases: the names of the SQLite files, folders: those of the folders, which are created if missing.
    passable: those through which other users may pass, and so through `folder`.
    A folder with other contents keeps its permissions: it may be a home directory, or /tmp.
    Raises Refused if the folder cannot be used, or one in it is another user's.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if _is_ours(folder):
            folder.chmod(0o711 if passable else 0o700)
        for name in databases:
            _touch_private(folder / name)
        for name in folders:
            _make_private_folder(folder / name)
            if name in passable:
                (folder / name).chmod(0o711)
    except OSError as error:
        raise Refused(f"--data-dir {folder} cannot be used: {error.strerror}: name a folder") from None


def _is_ours(folder: Path) -> bool:
    status = folder.stat()
    sticky = bool(status.st_mode & stat.S_ISVTX)
    empty = not any(folder.iterdir())
    ours = empty or any((folder / name).exists() for name in _OURS)
    return ours and not sticky and status.st_uid == os.geteuid()


def _make_private_folder(path: Path) -> None:
    path.mkdir(mode=0o700, exist_ok=True)
    if path.lstat().st_uid != os.geteuid():  # in a folder that others use, they may have been first
        raise Refused(f"{path} belongs to another user, who could change it: name another --data-dir")


def _touch_private(path: Path) -> None:
    """SQLite treats an empty file as a new database and gives its permissions to the files it adds."""
    path.touch(mode=0o600)
    path.chmod(0o600)
