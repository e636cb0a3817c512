"""What Linux offers for ending processes and for telling why one has ended; elsewhere nothing happens."""

from __future__ import annotations

import ctypes
import signal
import sys
from pathlib import Path

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36


def die_with_parent(number: int = signal.SIGKILL) -> None:
    """This process gets the signal when the one that forked it ends."""
    _prctl(_PR_SET_PDEATHSIG, number)


def adopt_orphans() -> None:
    """Processes below this one whose parent has ended become its own children, daemons included."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def out_of_memory_kills() -> int:
    """How many processes of this machine the kernel has killed because memory ran out; rises only."""
    try:
        lines = Path("/proc/vmstat").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)
