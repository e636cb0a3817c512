"""The limit of a rank's memory (`resources.memory_per_worker`). It is measured, so it needs no cgroup."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import psutil

from training.spec import shown_memory

_SECONDS_BETWEEN = 1.0


class MemoryLimit:
    """Finds ranks that use more than `limit` bytes together with their child processes. None: no limit.

    seconds_between: how often to ask; None: never.
    """

    def __init__(self, limit: int | None) -> None:
        self._limit = limit
        self.seconds_between = None if limit is None else _SECONDS_BETWEEN
        self._used: dict[int, int] = {}

    def over_limit(self, ranks: Iterable[int]) -> Iterator[int]:
        """Yields the process ids of ranks over the limit, each once. ranks: the process ids of all."""
        if self._limit is None:
            return
        for pid in list(ranks):
            if pid not in self._used and (used := _used_above(self._limit, pid)):
                self._used[pid] = used
                yield pid

    def why(self, pid: int) -> str:
        """Returns why a rank was over the limit; "" if it was not."""
        used = self._used.get(pid)
        if used is None or self._limit is None:
            return ""
        return (
            f"it used {shown_memory(used)} of memory, more than resources.memory_per_worker, which is "
            f"{shown_memory(self._limit)}"
        )


def _used_above(limit: int, pid: int) -> int | None:
    """Returns the bytes that a process tree uses if they are more than `limit`.

    Counts private memory and a share of what is shared with other processes, the fork server for one (PSS).
    """
    try:
        tree = [psutil.Process(pid)]
        tree += tree[0].children(recursive=True)
        if sum(process.memory_info().rss for process in tree) <= limit:  # an upper bound, and cheap
            return None
        used = 0
        for process in tree:
            memory = process.memory_full_info()
            used += getattr(memory, "pss", memory.uss)
    except psutil.Error:  # one has just ended
        return None
    return used if used > limit else None
