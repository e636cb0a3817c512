"""A server's CPU time. Unlike elapsed time, it hardly depends on the machine's other load."""

from __future__ import annotations

from contextlib import suppress

import psutil


def seconds(pid: int) -> float:
    """Returns the CPU time so far of the process and its descendants, including those that have ended."""
    total = 0.0
    process = psutil.Process(pid)
    for one in (process, *process.children(recursive=True)):
        with suppress(psutil.NoSuchProcess):
            times = one.cpu_times()
            total += times.user + times.system + times.children_user + times.children_system
    return total
