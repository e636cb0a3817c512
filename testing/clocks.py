"""Wall clocks of processes, each of which can be stepped while the machine's own is left alone."""

from __future__ import annotations

import atexit
import ctypes
import os
import shutil
import struct
import subprocess
import tempfile
from functools import cache
from pathlib import Path

_SOURCE = Path(__file__).with_name("clock.c")
_FOLLOWING, _FILE = "TESTING_CLOCK", "TESTING_CLOCK_FILE"


@cache
def library() -> Path | None:
    """Returns the compiled `clock.c`; None if there is no C compiler. Its file ends with this process."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        return None
    folder = tempfile.mkdtemp(prefix="syncbn-testing-clock-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    compiled = Path(folder) / "clock.so"
    options = ["-shared", "-fPIC", "-O2", "-Wall", "-Werror"]
    subprocess.run([compiler, *options, "-o", compiled, _SOURCE], check=True)
    return compiled


def preloaded() -> dict[str, str]:
    """Returns the variables with which a process must be started so that it, and its forks, can `follow`."""
    compiled = library()
    return {} if compiled is None else {"LD_PRELOAD": str(compiled), _FOLLOWING: "yes"}


class Clock:
    """A wall clock in a file, for all processes that follow it."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def create(self) -> None:
        self._path.write_bytes(struct.pack("=q", 0))

    def set(self, seconds: float) -> None:
        """Sets by how much it is ahead of the machine's clock."""
        with self._path.open("r+b", buffering=0) as file:
            file.write(struct.pack("=q", int(seconds * 1e9)))

    @property
    def environment(self) -> dict[str, str]:
        """The variables with which a process, and all that it starts, reads this clock from its start.

        Empty without a C compiler.
        """
        compiled = library()
        return {} if compiled is None else {"LD_PRELOAD": str(compiled), _FILE: str(self._path)}

    def follow(self) -> None:
        """Makes this process read this clock from now on; without a C compiler it keeps the machine's."""
        # What this process starts by itself keeps the machine's clock.
        os.environ.pop("LD_PRELOAD", None)
        if os.environ.pop(_FOLLOWING, None) and ctypes.CDLL(None).testing_clock_follow(bytes(self._path)):
            raise OSError(f"{self._path} cannot be mapped")
