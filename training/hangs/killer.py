"""A small process beside each rank that kills the rank if it cannot end itself.

A process that is stopped, or that holds Python's global lock in C code, cannot run Python code of its own.
The killer process runs only this file and imports nothing else of this project.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from contextlib import suppress
from time import monotonic

_POLL_SECONDS = 0.5


class Killer:
    """Kills this process when the time of the last `allow` has run out."""

    def __init__(self) -> None:
        # In the rank's process group, so that killing the group also ends the killer.
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            bufsize=0,
        )

    def allow(self, seconds: float) -> None:
        """Sets the remaining time, counted from now; replaces the previous one."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write(f"{seconds}\n".encode())

    def close(self) -> None:
        """Ends the killer process; blocks until it has exited."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.kill()
        self._process.wait()


def _guard(pid: int) -> None:
    """Kills the rank when its time runs out. Counts only time in which this process runs: a pause of both
    processes does not count.
    """
    remaining, before = float("inf"), monotonic()
    # The parent is checked too: data loaders forked from the rank may keep the pipe open after its death.
    while remaining > 0 and os.getppid() == pid:
        readable, _, _ = select.select([0], [], [], _POLL_SECONDS)
        now = monotonic()
        remaining, before = remaining - min(now - before, 2 * _POLL_SECONDS), now
        if readable:
            text = os.read(0, 65536)
            if not text:
                return
            remaining = float(text.split()[-1])
    if os.getppid() == pid:
        os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the rank
    _guard(int(sys.argv[1]))
