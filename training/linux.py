"""Linux functions for ending processes and for finding out why one ended; no-ops on other systems."""

from __future__ import annotations

import ctypes
import signal
import sys
from pathlib import Path

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36


def die_with_parent(number: int = signal.SIGKILL) -> None:
    """Makes the kernel send this process the signal `number` when its parent ends."""
    _prctl(_PR_SET_PDEATHSIG, number)


def adopt_orphans() -> None:
    """Makes this process the parent of its orphaned descendants, including daemons."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def out_of_memory_kills() -> int:
    """Returns how many processes the kernel has killed for lack of memory since this machine's boot."""
    try:
        lines = Path("/proc/vmstat").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)
