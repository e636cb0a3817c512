"""Checks of this machine: disks, shared memory, file descriptors, loopback and the machine's own name."""

from __future__ import annotations

import os
import resource
import shutil
import socket
from collections.abc import Iterable, Iterator
from pathlib import Path

from service.doctor.finding import Finding, fault, ok, warning
from service.errors import Refused
from service.ports import is_free

GIB = 2**30
FULL_BYTES, FULL_SHARE = GIB, 0.02
NEARLY_FULL_BYTES, NEARLY_FULL_SHARE = 5 * GIB, 0.1
"""A disk with less than one of both is full, or nearly."""
LEAST_SHARED_MEMORY = 256 * 2**20
FEWEST_FILES = 4096


def disks(folders: Iterable[Path]) -> Iterator[Finding]:
    """Yields how full the disks of these folders are, each disk once."""
    seen: set[int] = set()
    for folder in folders:
        folder = next(each for each in (folder, *folder.parents) if each.exists())
        if (device := folder.stat().st_dev) not in seen:
            seen.add(device)
            usage = shutil.disk_usage(folder)
            yield of_disk(folder, usage.free, usage.total)


def of_disk(folder: Path, free: int, total: int) -> Finding:
    """Returns how full a disk is. free, total: in bytes."""
    text = f"the disk of {folder} has {free / GIB:.1f} of {total / GIB:.0f} GiB free"
    if not free or (free < FULL_BYTES and free < FULL_SHARE * total):
        return fault("disk", text, "free space now: checkpoints and submissions fail when it is full")
    if free < NEARLY_FULL_BYTES and free < NEARLY_FULL_SHARE * total:
        return warning("disk", text, "it is nearly full: free space, or delete checkpoints of ended jobs")
    return ok("disk", text)


def shared_memory(folder: Path = Path("/dev/shm")) -> Iterator[Finding]:
    """Yields whether /dev/shm is large enough for workers of data loaders and for collectives."""
    if folder.is_dir():
        usage = shutil.disk_usage(folder)
        text = f"{folder} has {usage.free / 2**20:.0f} of {usage.total / 2**20:.0f} MiB free"
        if usage.free < LEAST_SHARED_MEMORY:
            advice = (
                "enlarge it (docker run --shm-size, shm_size in compose): data loaders with workers need it"
            )
            yield warning("shared memory", text, advice)
        else:
            yield ok("shared memory", text)


def files() -> Iterator[Finding]:
    """Yields whether a process may open enough files."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most != resource.RLIM_INFINITY and most < FEWEST_FILES:
        text = f"a process may open only {most} files"
        yield warning("files", text, f"raise the limit to {FEWEST_FILES} or more (ulimit -Hn, LimitNOFILE)")


def network() -> Iterator[Finding]:
    """Yields whether loopback works and the machine's own name has an address."""
    try:
        is_free("127.0.0.1", 0)
    except Refused as error:
        yield fault("network", str(error), "the servers of one machine reach each other by it")
        return
    name = socket.gethostname()
    try:
        socket.getaddrinfo(name, None)
    except OSError:
        advice = f"add a line for {name} to /etc/hosts, or set GLOO_SOCKET_IFNAME: ranks look it up"
        yield warning("network", f"the name of this machine, {name}, has no address", advice)
    else:
        yield ok("network", f"loopback works, {name} has an address")


def is_read_only(folder: Path) -> bool:
    """Returns whether the folder's file system is mounted read-only."""
    return bool(os.statvfs(folder).f_flag & os.ST_RDONLY)
