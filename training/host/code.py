"""Uploaded code on this machine: archives by digest, and a folder of its own for each start of an attempt."""

from __future__ import annotations

import io
import shutil
import zipfile
from pathlib import Path

from training.protocol import CodeMissing, Order

_KEPT = 20
"""Archives of those used last; an agent that has not got one is given it again."""


class CodeCache:
    """In `folder`, which nobody else writes to."""

    def __init__(self, folder: Path) -> None:
        self._archives, self._work = folder / "archives", folder / "work"
        for each in (self._archives, self._work):
            each.mkdir(parents=True, exist_ok=True)

    def put(self, digest: str, archive: bytes) -> None:
        temporary = self._archives / f"{digest}.new"
        temporary.write_bytes(archive)
        temporary.replace(self._archives / digest)
        by_age = sorted(self._archives.iterdir(), key=lambda path: path.stat().st_mtime)
        for old in by_age[:-_KEPT]:
            old.unlink(missing_ok=True)

    def folder_for(self, order: Order) -> Path:
        """The working directory of its ranks on this host: the code, unpacked anew, or nothing.

        A job may write where it works; no other one reads that. Raises CodeMissing.
        """
        if order.code_folder is not None:
            return Path(order.code_folder)
        folder = self._work / f"{order.attempt}-{order.start}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        if order.code is not None:
            archive = self._archives / order.code
            try:
                content = archive.read_bytes()
            except FileNotFoundError:
                raise CodeMissing(order.code) from None
            archive.touch()
            with zipfile.ZipFile(io.BytesIO(content)) as files:
                files.extractall(folder)
        return folder

    def remove(self, order: Order) -> None:
        """What the ranks of a start have left in their working directory."""
        shutil.rmtree(self._work / f"{order.attempt}-{order.start}", ignore_errors=True)
