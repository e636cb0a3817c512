"""Sums over the ranks of a group: whether they share memory, how they agree on it, and the sums.

The ranks of a group agree after its first handshake, when all of them are known to be at the same place.
"""

import json
import logging
import os
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import _get_default_group, _get_process_group_store

from sync_bn import _handshake, _shared_memory, groups
from sync_bn._handshake import DesynchronizedError
from sync_bn._meeting import KINDS, Meeting, Places
from sync_bn._shared_memory import SharedMemory

logger = logging.getLogger(__name__)

FOLDER_VARIABLE = "SYNC_BN_SHARED_MEMORY"
"""The environment variable with a folder for shared memory instead of /dev/shm; 0: share no memory."""

_meetings: WeakKeyDictionary[dist.ProcessGroup, Meeting | None] = WeakKeyDictionary()
"""By group, after `prepare`; None: its ranks do not share memory."""


def is_prepared(group: dist.ProcessGroup | None) -> bool:
    """Whether the ranks of the group have agreed. The same on all of them."""
    return _existing(group) in _meetings


def prepare(group: dist.ProcessGroup | None, device: torch.device) -> None:
    """Agrees with the ranks of the group whether they share memory. Further calls do nothing.

    Collective: every rank of the group must call it, after a handshake. device: that of the numbers to add.
    Raises DesynchronizedError if a rank does not answer.
    """
    group = _existing(group)
    if group not in _meetings:
        _give_up_in_children()
        _meetings[group] = _Agreement(group).reached(_refusal(device))


def add(numbers: Tensor, group: dist.ProcessGroup | None, what: str) -> bool:
    """Adds numbers over the ranks in place. Returns False, and does nothing, if the ranks share no memory.

    numbers: contiguous. Those that are not float64 or int64 on the CPU are not added in shared memory either.
    what: what they are for; the same text on all ranks.
    Collective: blocks until all ranks of the group have called it. If ranks differ in `what` or in how many
    numbers they have, all raise DesynchronizedError. If a rank has ended, or does not come within the timeout
    of the group, all raise DistBackendError. After an error, all further calls raise it.
    """
    group = _existing(group)
    meeting = _meetings.get(group)
    if meeting is None or numbers.dtype not in KINDS or not numbers.is_cpu:
        return False
    meeting.add(numbers, group, what)
    return True


def is_on_one_host(group: dist.ProcessGroup | None) -> bool:
    """Whether all ranks of the group add in the memory of one host. The same on all of them."""
    meeting = _meetings.get(_existing(group))
    return meeting is not None and meeting.is_on_one_host


def uncounted(group: dist.ProcessGroup) -> int:
    """Returns how many sums this rank has entered that the group's own count of collectives lacks."""
    meeting = _meetings.get(group)
    return 0 if meeting is None else meeting.uncounted


class Member(NamedTuple):
    """What a rank says of itself: its host, its process, and why it cannot share memory, if it cannot."""

    host: str
    process: str
    refusal: str | None


def hosts_of(members: Sequence[Member]) -> list[list[int]] | None:
    """Returns the ranks of each host, in order; None if no memory is to be shared."""
    if any(member.refusal for member in members):
        return None
    if len({(member.host, member.process) for member in members}) < len(members):
        return None  # ranks that are threads: the kernel cannot tell that one of them has ended
    hosts: dict[str, list[int]] = {}
    for rank, member in enumerate(members):
        hosts.setdefault(member.host, []).append(rank)
    return list(hosts.values()) if len(hosts) < len(members) else None


class _Agreement:
    """How the ranks of a group agree, by keys of its store: each says where it is, and if it has mapped."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self._store = _get_process_group_store(group)
        self._ranks = dist.get_process_group_ranks(group)
        self._rank = dist.get_rank(group)

    def reached(self, refusal: str | None) -> Meeting | None:
        """Returns the meeting, or None, on all ranks alike. refusal: why this rank cannot take part."""
        self._set(f"member/{self._rank}", Member("/".join(groups.host()), _process(), refusal))
        hosts = hosts_of([Member(*self._get(f"member/{rank}")) for rank in range(len(self._ranks))])
        if hosts is None:
            return None
        places = Places(self._ranks, hosts, self._rank)
        memory, path, problem = self._mapped(places)
        try:
            self._set(f"mapped/{self._rank}", problem)
            verdict = self._verdict()
        finally:
            # All ranks have mapped it or given it up. Now it is gone when they are, however they end.
            if path is not None:
                with suppress(OSError):
                    path.unlink()
        if verdict is None:
            return Meeting(places, memory)
        if memory is not None:
            memory.close()
        if self._rank == 0:
            logger.warning(
                "Ranks of one host share no memory, so they add statistics through the process group, which "
                "takes longer: %s. %s=0 says that this is intended.",
                *(verdict, FOLDER_VARIABLE),
            )
        return None

    def _mapped(self, places: Places) -> tuple[SharedMemory | None, Path | None, str | None]:
        """Returns this host's memory, its path, and what went wrong on this rank."""
        host, key = places.own_host, f"memory/{places.own_host[0]}"
        if len(host) == 1:
            return None, None, None
        path: Path | None = None
        try:
            if places.leads:
                memory, path = SharedMemory.create(folder(), len(host))
                self._set(key, path.name)
                return memory, path, None
            if name := self._get(key):
                path = Path(folder()) / name
                return SharedMemory.open(path, host.index(self._rank), len(host)), path, None
        except OSError as error:
            if places.leads:
                self._set(key, "")
            return None, path, f"rank {self._ranks[self._rank]} has no memory: {error}"
        return None, None, None

    def _verdict(self) -> str | None:
        """Returns the first problem of all ranks. Rank 0 decides, so that all agree."""
        if self._rank == 0:
            problems = [self._get(f"mapped/{rank}") for rank in range(len(self._ranks))]
            self._set("verdict", next(filter(None, problems), None))
        verdict: str | None = self._get("verdict")
        return verdict

    def _set(self, key: str, value: object) -> None:
        self._store.set(f"sync_bn/memory/{key}", json.dumps(value))

    def _get(self, key: str) -> Any:
        seconds = _handshake.policy.timeout_seconds
        try:
            self._store.wait([f"sync_bn/memory/{key}"], timedelta(seconds=seconds))
        except RuntimeError as error:  # each store raises its own
            raise DesynchronizedError(
                f"The ranks did not agree within {seconds:g} s whether they share memory: rank "
                f"{dist.get_rank()} got no answer to {key} ({error})"
            ) from None
        return json.loads(self._store.get(f"sync_bn/memory/{key}"))


def _refusal(device: torch.device) -> str | None:
    if device.type != "cpu":
        return f"its numbers are on {device.type}"
    if not _shared_memory.is_available():
        return "sync_bn's library is not built"
    if folder() == "0":
        return f"{FOLDER_VARIABLE} is 0"
    if dist.get_debug_level() == dist.DebugLevel.DETAIL:  # type: ignore[attr-defined]
        return "torch is to check each collective"
    return None


def folder() -> str:
    """Returns the folder for shared memory; 0: share none."""
    return os.environ.get(FOLDER_VARIABLE) or "/dev/shm"


def _process() -> str:
    """Returns the number of this process, and in which of the host's name spaces it counts."""
    name_space = Path("/proc/self/ns/pid")
    return f"{os.getpid()} of {name_space.readlink() if name_space.exists() else 'all'}"


def _existing(group: dist.ProcessGroup | None) -> dist.ProcessGroup:
    return _get_default_group() if group is None else group


@cache
def _give_up_in_children() -> None:
    """Lets forked processes, which are no ranks, close what they inherit."""
    os.register_at_fork(after_in_child=_give_up)


def _give_up() -> None:
    for group, meeting in list(_meetings.items()):
        if meeting is not None:
            meeting.close()
            _meetings[group] = None
