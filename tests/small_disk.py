"""A small disk of a test's own, to be filled: a tmpfs, which only root may mount."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

MIB = 2**20


@contextmanager
def small_disk(folder: Path, *, mib: int) -> Iterator[Path]:
    """Mounts one at a new folder until the block ends. Skips the test where that is not allowed."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={mib}m,mode=0777", "none", str(folder)]
    mounted = subprocess.run(command, capture_output=True, text=True)
    if mounted.returncode:
        folder.rmdir()
        pytest.skip(f"a tmpfs cannot be mounted here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        # Lazily: a process that a test has left behind must not keep it mounted.
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path, *, share: float) -> Path:
    """Writes one file, so that this share of the disk is used; returns its path."""
    disk = os.statvfs(folder)
    used = (disk.f_blocks - disk.f_bfree) * disk.f_frsize
    path = folder / "filling"
    with path.open("xb") as file:
        os.posix_fallocate(file.fileno(), 0, int(disk.f_blocks * disk.f_frsize * share) - used)
    return path
