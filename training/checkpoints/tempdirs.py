"""Temporary folders for whole checkpoints, in TMPDIR. Those that a killed process left go with the next one.

A folder's name begins with the machine and the process that made it: TMPDIR may be on a shared file system,
and another machine's processes cannot be seen.
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
    """An empty folder `path`, gone with `remove`, with this object, or with its process."""

    def __init__(self) -> None:
        of_machine = f"syncbn-{socket.gethostname()}-"
        _remove_what_is_left(of_machine)
        self.path = Path(tempfile.mkdtemp(prefix=f"{of_machine}{os.getpid()}-"))
        self.remove = weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)


def _remove_what_is_left(of_machine: str) -> None:
    for folder in Path(tempfile.gettempdir()).iterdir():
        named = re.fullmatch(rf"{re.escape(of_machine)}(\d+)-\w+", folder.name)
        if named and not psutil.pid_exists(int(named[1])):
            shutil.rmtree(folder, ignore_errors=True)
