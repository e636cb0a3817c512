"""What a server computes: unlike the time that passes, it hardly depends on what else a machine has to do."""

from __future__ import annotations

from contextlib import suppress

import psutil


def seconds(pid: int) -> float:
    """CPU time of the process and everything below it so far, also of what has ended."""
    total = 0.0
    process = psutil.Process(pid)
    for one in (process, *process.children(recursive=True)):
        with suppress(psutil.NoSuchProcess):
            times = one.cpu_times()
            total += times.user + times.system + times.children_user + times.children_system
    return total
