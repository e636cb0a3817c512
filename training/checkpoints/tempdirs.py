"""Temporary folders for checkpoints in TMPDIR. A new one removes those that killed processes left behind.

A folder's name starts with the host name and process id of its owner: TMPDIR may be on a shared file system,
and a process of another machine cannot be looked up.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import tempfile
import weakref
from pathlib import Path

import psutil


class TemporaryFolder:
    """An empty folder `path`, deleted by `remove`, with this object, or when its process exits."""

    def __init__(self) -> None:
        prefix = f"syncbn-{socket.gethostname()}-"
        _remove_stale(prefix)
        self.path = Path(tempfile.mkdtemp(prefix=f"{prefix}{os.getpid()}-"))
        self.remove = weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)


def _remove_stale(prefix: str) -> None:
    for folder in Path(tempfile.gettempdir()).iterdir():
        named = re.fullmatch(rf"{re.escape(prefix)}(\d+)-\w+", folder.name)
        if named and not psutil.pid_exists(int(named[1])):
            shutil.rmtree(folder, ignore_errors=True)
