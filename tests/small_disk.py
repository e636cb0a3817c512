"""Disks of a test's own, which only root may mount: a small one to be filled, and one that is frozen."""

from __future__ import annotations

import ctypes
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


@contextmanager
def frozen_disk(folder: Path) -> Iterator[Path]:
    """Mounts a file system whose server never answers, as that of a network drive may do, at a new folder.

    Skips the test where that is not allowed. When the block ends, calls that wait for it fail.
    """
    folder.mkdir()
    try:
        server = os.open("/dev/fuse", os.O_RDWR)
    except OSError as error:
        pytest.skip(f"FUSE is not available here: {error}")
    options = f"fd={server},rootmode=40000,user_id={os.geteuid()},group_id={os.getegid()}".encode()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"none", str(folder).encode(), b"fuse", 0, options):
        os.close(server)
        pytest.skip(f"FUSE cannot be mounted here: {os.strerror(ctypes.get_errno())}")
    try:
        yield folder
    finally:
        os.close(server)
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
