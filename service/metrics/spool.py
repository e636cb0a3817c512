"""How many bytes of metrics wait in the spools of jobs that run: they have not reached MLflow yet."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from service.log_files import open_log

_LONGEST_NUMBER = 32
MOST_JOBS = 1_000
"""Of how many jobs the spools are looked at."""


def waiting_bytes(folders: Iterable[Path]) -> int:
    """Returns the bytes that wait in the spools of these run folders, all together."""
    return sum(_waiting(folder / "spool") for folder in folders)


def _waiting(spool: Path) -> int:
    try:
        written = spool.stat().st_size
    except OSError:
        return 0
    try:
        with open_log(spool.with_name("spool.sent")) as file:
            sent = int(file.read(_LONGEST_NUMBER))
    except (OSError, ValueError):
        sent = 0
    return max(written - sent, 0)
