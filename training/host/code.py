"""Uploaded code on this machine: archives by digest, and a working directory for each start of an attempt."""

from __future__ import annotations

import io
import shutil
import tempfile
import zipfile
from pathlib import Path

from training.host.job_folders import give_folder
from training.host.job_user import AgentUser, JobUser
from training.protocol import CodeMissing, Order

_MAX_ARCHIVES = 20
"""Number of archives to keep, the most recently used; the service uploads a missing one again."""


class CodeCache:
    """Code archives and working directories in `folder`, which no other process writes to."""

    def __init__(self, folder: Path) -> None:
        self._archives, self._work = folder / "archives", folder / "work"
        for each in (self._archives, self._work):
            each.mkdir(parents=True, exist_ok=True)
        self._archives.chmod(0o700)
        self._work.chmod(0o711)  # other users reach their own folder in it

    def put(self, digest: str, archive: bytes) -> None:
        """Stores a zip archive under its digest, atomically, and deletes the least recently used ones."""
        # A name of its own: the archive may come twice at once.
        with tempfile.NamedTemporaryFile(dir=self._archives.parent, delete=False) as temporary:
            temporary.write(archive)
        Path(temporary.name).replace(self._archives / digest)
        by_age = sorted(self._archives.iterdir(), key=lambda path: path.stat().st_mtime)
        for old in by_age[:-_MAX_ARCHIVES]:
            old.unlink(missing_ok=True)

    def folder_for(self, order: Order, user: JobUser | AgentUser) -> Path:
        """Returns the working directory of the order's ranks: a new folder with the unpacked code, if any.

        It is the user's, and no other job reads it, so a job may write there. If the order names a
        `code_folder`, returns that one.
        Raises CodeMissing if the archive is not in the cache.
        """
        if order.code_folder is not None:
            return Path(order.code_folder)
        folder = self._work / f"{order.attempt}-{order.start}"
        shutil.rmtree(folder, ignore_errors=True)
        give_folder(folder, user)
        if order.code is not None:
            archive = self._archives / order.code
            try:
                content = archive.read_bytes()
            except FileNotFoundError:
                raise CodeMissing(order.code) from None
            archive.touch()
            with user.files(), zipfile.ZipFile(io.BytesIO(content)) as files:
                files.extractall(folder)
        return folder

    def remove(self, order: Order) -> None:
        """Deletes the working directory of a start."""
        shutil.rmtree(self._work / f"{order.attempt}-{order.start}", ignore_errors=True)
