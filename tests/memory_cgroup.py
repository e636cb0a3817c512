"""A control group whose processes may have little memory, for those who are allowed to make one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

LIMIT = 64 * 2**20
_KINDS = {"/sys/fs/cgroup/memory": "memory.limit_in_bytes", "/sys/fs/cgroup": "memory.max"}  # versions 1, 2


@contextmanager
def memory_cgroup() -> Iterator[Path | None]:
    """The folder of a group with LIMIT bytes, gone with the context; None where it cannot be made.

    A process joins it by writing its pid into `cgroup.procs`; what it had before is not counted.
    """
    folder = _made()
    try:
        yield folder
    finally:
        if folder is not None:
            with suppress(OSError):
                folder.rmdir()


def _made() -> Path | None:
    for root, limit in _KINDS.items():
        folder = Path(root, f"syncbn-test-{os.getpid()}")
        try:
            folder.mkdir()
            (folder / limit).write_text(str(LIMIT))
        except OSError:
            with suppress(OSError):
                folder.rmdir()
            continue
        with suppress(OSError):  # it would be swapped out first
            (folder / "memory.swap.max").write_text("0")
        return folder
    return None
