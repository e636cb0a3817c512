"""Functions of Linux: how processes end and why one has ended, what is done with freed memory.

On other systems they do nothing.
"""

from __future__ import annotations

import ctypes
import signal
import sys
from contextlib import suppress
from pathlib import Path

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEPT_BYTES = 2**30
"""Larger blocks, and more than this at the end of what a process has, are returned."""


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


def keep_freed_memory() -> None:
    """Lets the C library keep memory that this process frees, for the tensors of its next step.

    By default, glibc returns large blocks to the kernel, which finds and clears their pages again at the next
    use: thousands of page faults a step. Its threads and children do as it does. Does nothing with another C
    library.
    """
    with suppress(OSError, AttributeError):
        for parameter in (_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD):
            ctypes.CDLL(None).mallopt(parameter, _KEPT_BYTES)


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)
