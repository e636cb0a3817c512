"""A small process beside a rank, which ends it where it cannot end itself.

A process that keeps Python's global lock in C code, or that was stopped, runs none of its own Python. The
sentinel imports nothing of this project: it runs this file alone.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from contextlib import suppress
from time import monotonic

_LOOK_SECONDS = 0.5


class Killer:
    """Kills this process once the time is over that `allow` gave it last."""

    def __init__(self) -> None:
        # The same process group: whoever backoff the group backoff the sentinel with it.
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            bufsize=0,
        )

    def allow(self, seconds: float) -> None:
        """From now on; replaces what was allowed before."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write(f"{seconds}\n".encode())

    def close(self) -> None:
        """Dismisses it; it is gone when this returns."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.kill()
        self._process.wait()


def _guard(pid: int) -> None:
    """Counts only time in which it runs itself, so that a pause of both does not count."""
    left, before = float("inf"), monotonic()
    # Data loaders that were forked from the rank may keep the pipe open longer than it lives.
    while left > 0 and os.getppid() == pid:
        told, _, _ = select.select([0], [], [], _LOOK_SECONDS)
        now = monotonic()
        left, before = left - min(now - before, 2 * _LOOK_SECONDS), now
        if told:
            text = os.read(0, 65536)
            if not text:
                return
            left = float(text.split()[-1])
    if os.getppid() == pid:
        os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the rank
    _guard(int(sys.argv[1]))
