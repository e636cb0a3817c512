"""Identity of a process beyond its pid: pids are reused, and the wall clock may be set."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import psutil

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_NAMESPACE = Path("/proc/self/ns/pid")
_START_TICKS = 19  # field of /proc/PID/stat, counted after the name, which may contain anything


@dataclass(frozen=True, kw_only=True)
class Identity:
    """One process, running or ended.

    born: when and where the process started. It never changes, and no other process with this pid has it.
    """

    pid: int
    born: str

    @classmethod
    def of(cls, pid: int) -> Self:
        """Returns the identity of a running process. Raises psutil.NoSuchProcess if none has this pid."""
        if sys.platform != "linux":
            return cls(pid=pid, born=f"{psutil.Process(pid).create_time():.2f}")
        return cls(pid=pid, born=f"{pid_scope()}/{_stat(pid)[_START_TICKS]}")

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Parses what `str(identity)` returned; returns None for any other text."""
        pid, _, born = text.partition("@")
        return cls(pid=int(pid), born=born) if pid.isdecimal() and born else None

    def __str__(self) -> str:
        return f"{self.pid}@{self.born}"

    def process(self) -> psutil.Process | None:
        """Returns the process, or None if it has ended. A zombie has ended."""
        try:
            process = psutil.Process(self.pid)
            same = Identity.of(self.pid) == self and process.status() != psutil.STATUS_ZOMBIE
            return process if same else None
        except psutil.Error:
            return None

    def has_ended(self) -> bool:
        """Returns True if the process has certainly ended.

        Returns False for a process of another machine or container, which cannot be seen from here.
        """
        visible = bool(pid_scope()) and self.born.startswith(f"{pid_scope()}/")
        return visible and self.process() is None


def pid_scope() -> str:
    """Returns the boot and pid namespace within which pids are unique; "" if they cannot be read."""
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
    """Returns the identity of this process."""
    return Identity.of(os.getpid())
