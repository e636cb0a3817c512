"""Memory that the ranks of one host share, in which they add numbers: bindings to `_meeting.cpp`.

Only Linux has it, and only where the library of `_native` is built.
"""

import ctypes
import mmap
import os
import sys
import threading
import uuid
from collections.abc import Callable, Sequence
from enum import IntEnum
from pathlib import Path
from typing import Any, Self

from sync_bn import _native

if sys.platform != "win32":  # where there is no library either
    import fcntl

_VERSION = 1
_SPINS = 2000
"""How often a rank looks before it sleeps: for 20 to 100 µs, about as long as sleeping and waking take."""
_SLICE_MILLISECONDS = 200
"""How long a rank waits before it handles signals and looks whether the others are alive."""
_ADDED, _WAITING, _FAILED, _DIFFERENT = range(4)


class Kind(IntEnum):
    """What a rank gets in a meeting: sums of float64 or of int64, or the numbers of the host's first rank."""

    DOUBLES = 0
    INTEGERS = 1
    OF_THE_FIRST = 2


class MeetingFailed(Exception):
    """A rank has ended the meeting. The message is its verdict."""


class RanksDiffer(Exception):
    """The ranks are not in the same meeting. whats: what each has entered."""

    def __init__(self, whats: Sequence[str]) -> None:
        super().__init__(whats)
        self.whats = whats


def _load() -> ctypes.CDLL | None:
    library = _native.library()
    try:
        if library is None or library.sync_bn_meeting_version() != _VERSION:
            return None
        functions: dict[str, tuple[list[Any], Any]] = {
            "meeting_capacity": ([], ctypes.c_long),
            "meeting_bytes": ([ctypes.c_long], ctypes.c_long),
            "meeting_begin": ([ctypes.c_void_p, ctypes.c_long], None),
            "meet": (
                [
                    *(ctypes.c_void_p, ctypes.c_long, ctypes.c_uint32, ctypes.c_bool, ctypes.c_int64),
                    *(ctypes.c_void_p, ctypes.c_long, ctypes.c_char_p, ctypes.c_long, ctypes.c_long),
                ],
                ctypes.c_int,
            ),
            "meeting_fail": ([ctypes.c_void_p, ctypes.c_char_p], None),
            "meeting_verdict": ([ctypes.c_void_p], ctypes.c_char_p),
            "meeting_open": ([ctypes.c_void_p], ctypes.c_uint32),
            "meeting_entered": ([ctypes.c_void_p, ctypes.c_long], ctypes.c_uint32),
            "meeting_what": ([ctypes.c_void_p, ctypes.c_long, ctypes.c_uint32], ctypes.c_char_p),
        }
        for name, (arguments, result) in functions.items():
            function = library[f"sync_bn_{name}"]
            function.argtypes, function.restype = arguments, result
            setattr(library, f"sync_bn_{name}", function)
    except AttributeError:  # built from an earlier version
        return None
    return library


_LIBRARY = _load()


def is_available() -> bool:
    """Whether processes of this system can meet in shared memory."""
    return _LIBRARY is not None


def capacity() -> int:
    """Returns how many numbers fit into one meeting."""
    return int(_library().sync_bn_meeting_capacity())


class SharedMemory:
    """One rank's view of the memory.

    Each rank holds a lock on a byte of the file, by which the others see whether it is alive: the kernel
    releases it when the process ends, in whatever way, and its children do not inherit it.
    """

    def __init__(self, descriptor: int, rank: int, ranks: int, *, is_new: bool = False) -> None:
        """Takes the descriptor of the file. rank, ranks: of this host. is_new: whether no rank has it yet."""
        self.rank, self.ranks, self.rounds = rank, ranks, 0
        self._descriptor = descriptor
        size = _library().sync_bn_meeting_bytes(ranks)
        try:
            if os.fstat(descriptor).st_size != size:
                raise OSError(f"the memory has {os.fstat(descriptor).st_size} bytes instead of {size}")
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, rank)
            self._map = mmap.mmap(descriptor, size)
        except BaseException:
            os.close(descriptor)
            raise
        self._byte: ctypes.c_char | None = ctypes.c_char.from_buffer(self._map)
        self._address = ctypes.addressof(self._byte)
        if is_new:
            _library().sync_bn_meeting_begin(self._address, ranks)
        # Where ranks share processors, one that spins keeps another from arriving.
        self._spins = _SPINS if ranks <= len(os.sched_getaffinity(0)) else 0
        self._mutex = threading.Lock()

    @classmethod
    def create(cls, folder: str, ranks: int) -> tuple[Self, Path]:
        """Returns the memory for the host's first rank, and its path. Raises OSError if there is no room."""
        descriptor, path = create_file(folder, _library().sync_bn_meeting_bytes(ranks))
        try:
            memory = cls(descriptor, 0, ranks, is_new=True)
        except BaseException:
            path.unlink()
            raise
        return memory, path

    @classmethod
    def open(cls, path: Path, rank: int, ranks: int) -> Self:
        """Returns the memory for another rank. Raises OSError if it is not there."""
        return cls(open_file(path), rank, ranks)

    def meet(
        self, kind: Kind, address: int, count: int, what: str, still_waiting: Callable[[], None]
    ) -> None:
        """Replaces the numbers at `address` by the result. Blocks until all ranks of the host have come.

        count: how many, each of 8 bytes, at most `capacity`. what: a text that all ranks must have in common.
        still_waiting: called again and again meanwhile. What it raises ends the meeting of this rank alone.
        Raises MeetingFailed and RanksDiffer.
        """
        with self._mutex:
            self.rounds += 1
            arguments = kind, address, count, what.encode()[:111]
            status = self._meet(False, *arguments)
            while status == _WAITING:
                still_waiting()
                status = self._meet(True, *arguments)
            if status == _FAILED:
                raise MeetingFailed(self._verdict(still_waiting))
            if status == _DIFFERENT:
                raise RanksDiffer([self.what(rank) for rank in range(self.ranks)])

    def _meet(self, is_again: bool, kind: Kind, address: int, count: int, what: bytes) -> int:
        return int(
            _library().sync_bn_meet(
                *(self._address, self.rank, self.rounds % 2**32, is_again, kind, address, count, what),
                *(self._spins, _SLICE_MILLISECONDS),
            )
        )

    def _verdict(self, still_waiting: Callable[[], None]) -> str:
        """Waits, if necessary, until the rank that has failed has written why."""
        while (verdict := _library().sync_bn_meeting_verdict(self._address)) is None:
            still_waiting()
        return str(verdict.decode(errors="replace"))

    def fail(self, verdict: str) -> str:
        """Ends the meeting for all ranks of the host. Returns the verdict that counts, the first one."""
        _library().sync_bn_meeting_fail(self._address, verdict.encode()[:4095])
        first = _library().sync_bn_meeting_verdict(self._address)
        return verdict if first is None else str(first.decode(errors="replace"))

    def absent(self) -> list[int]:
        """Returns the ranks of the host that have not entered the meeting that this one waits in."""
        entered = [_library().sync_bn_meeting_entered(self._address, rank) for rank in range(self.ranks)]
        return [rank for rank in range(self.ranks) if (entered[rank] - entered[self.rank]) % 2**32 >= 2**31]

    def ended(self) -> list[int]:
        """Returns the ranks that have ended before all had entered the meeting that this one waits in."""
        ended = [rank for rank in range(self.ranks) if rank != self.rank and not self._is_alive(rank)]
        # In this order: a rank may have ended after a meeting that opened in the meantime.
        is_open = int(_library().sync_bn_meeting_open(self._address)) == self.rounds % 2**32
        return [] if is_open else ended

    def what(self, rank: int) -> str:
        """Returns what a rank has entered in this round."""
        what = _library().sync_bn_meeting_what(self._address, rank, self.rounds % 2**32)
        return str(what.decode(errors="replace"))

    def _is_alive(self, rank: int) -> bool:
        """Whether the process of another rank of the host lives and has not left the group."""
        try:
            fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, rank)
        except OSError:
            return True
        fcntl.lockf(self._descriptor, fcntl.LOCK_UN, 1, rank)
        return False

    def close(self) -> None:
        """Gives back memory and descriptors. May be called again."""
        if self._byte is not None:
            self._byte = None
            self._map.close()
            os.close(self._descriptor)

    def __del__(self) -> None:
        # Completely made, and not when the interpreter ends and has taken modules away.
        if hasattr(self, "_byte") and os is not None:
            self.close()


def create_file(folder: str, size: int) -> tuple[int, Path]:
    """Returns the descriptor and the path of new memory. Raises OSError if there is no room."""
    path = Path(folder) / f"sync_bn-{uuid.uuid4().hex}"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        # Memory that is promised now is there later. A full file system would end the process.
        os.posix_fallocate(descriptor, 0, size)
    except BaseException:
        os.close(descriptor)
        path.unlink()
        raise
    return descriptor, path


def open_file(path: Path) -> int:
    """Returns the descriptor of memory that another process made. Raises OSError if it is not there."""
    return os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)


def _library() -> ctypes.CDLL:
    assert _LIBRARY is not None
    return _LIBRARY
