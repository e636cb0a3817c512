"""Which process a pid means: pids are given again, and the wall clock may be set."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import psutil

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_NAMESPACE = Path("/proc/self/ns/pid")
_START_TICKS = 19  # in /proc/PID/stat, counted from behind the name, which may hold anything


@dataclass(frozen=True, kw_only=True)
class Identity:
    """One process, whether it still runs or not.

    born: when and where it began, the same at every look and of no other process that had this pid.
    """

    pid: int
    born: str

    @classmethod
    def of(cls, pid: int) -> Self:
        """Of a process that runs. Raises psutil.NoSuchProcess."""
        if sys.platform != "linux":
            return cls(pid=pid, born=f"{psutil.Process(pid).create_time():.2f}")
        return cls(pid=pid, born=f"{place()}/{_stat(pid)[_START_TICKS]}")

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """What `str` made; None for any other text."""
        pid, _, born = text.partition("@")
        return cls(pid=int(pid), born=born) if pid.isdecimal() and born else None

    def __str__(self) -> str:
        return f"{self.pid}@{self.born}"

    def process(self) -> psutil.Process | None:
        """None: it has ended, its parent has taken note of that or not."""
        try:
            process = psutil.Process(self.pid)
            same = Identity.of(self.pid) == self and process.status() != psutil.STATUS_ZOMBIE
            return process if same else None
        except psutil.Error:
            return None

    def has_ended(self) -> bool:
        """Whether that is certain: processes of another machine or container cannot be seen."""
        here = bool(place()) and self.born.startswith(f"{place()}/")
        return here and self.process() is None


def place() -> str:
    """This boot of this machine, as far as pids mean the same in it; "" where that cannot be told."""
    try:
        return f"{_BOOT_ID.read_text().strip()}/{_NAMESPACE.stat().st_ino}"
    except OSError:
        return ""


def _stat(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        raise psutil.NoSuchProcess(pid) from None


def own_identity() -> Identity:
    return Identity.of(os.getpid())
