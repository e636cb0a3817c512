"""The handshake: ranks check that they are about to enter the same collective.

It uses the key-value store of the process group, because a collective that only some ranks enter, or enter
with different contents, is what it has to prevent. Each rank makes a few store requests; the device is not
involved.
"""

import logging
import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from weakref import WeakKeyDictionary

import torch.distributed as dist
from torch.distributed.distributed_c10d import _get_process_group_store

logger = logging.getLogger(__name__)

_WARN_AFTER_SECONDS = 5.0


class DesynchronizedError(RuntimeError):
    """Ranks were about to enter different collectives, or one did not arrive in time.

    The message names the ranks and what each was about to enter. Every waiting rank raises the same one.
    """


@dataclass
class Policy:
    """In how many steps layers check, and how long a rank waits for the others. See `check_ranks`."""

    steps: float = 2
    timeout_seconds: float = 30.0


policy = Policy()

_steps_checked: Counter[str] = Counter()
"""The number of steps that this process has checked, by the layer's key.

Copies and pickles of a layer share its key, so a rank that alone reloads a layer does not wait for a check
that no other rank makes.
"""

_handshake_counts: WeakKeyDictionary[dist.ProcessGroup, int] = WeakKeyDictionary()
"""The number of handshakes so far in each group; equal on all of its ranks."""


def check_ranks(*, steps: int | None = 2, timeout_seconds: float = 30.0) -> None:
    """Sets in how many steps layers check, before each collective, that all ranks do the same.

    Ranks compare the layer, its number of channels, the input's dtype, whether gradients are needed, and
    forward or backward. If one differs, or does not arrive within `timeout_seconds`, every waiting rank
    raises `DesynchronizedError` instead of hanging.

    steps: the number of training steps of each layer to check, from its first; None: all; 0: none. A check
    takes about as long as one or two collectives; an unchecked step costs nothing. Ranks of one host add in
    shared memory only after checked steps, and there they compare in every step what they add.
    timeout_seconds: how long a rank waits for the others, in seconds.

    Applies to all layers of this process. Call it on every rank with the same arguments, before the first
    step; it does not block. Raises ValueError if `steps` is negative or `timeout_seconds` is not positive.
    """
    if steps is not None and steps < 0:
        raise ValueError(f"steps={steps}: expected a number of steps ≥ 0, or None to check always.")
    if not timeout_seconds > 0:
        raise ValueError(f"timeout_seconds={timeout_seconds}: expected a positive number of seconds.")
    policy.steps = float("inf") if steps is None else steps
    policy.timeout_seconds = timeout_seconds


def new_key() -> str:
    """Returns a unique key for a layer, before its first check."""
    return uuid.uuid4().hex


def is_checked(key: str) -> bool:
    """Whether the layer needs no further checks under the current policy."""
    return _steps_checked[key] >= policy.steps


def count_step(key: str) -> None:
    """Counts a checked step of the layer."""
    _steps_checked[key] += 1


def handshake(group: dist.ProcessGroup | None, layer: str, phase: str) -> None:
    """Blocks until all ranks of the group have called it for the same phase of the same layer.

    group: None: the default group. Raises DesynchronizedError on all ranks if one differs or is late.
    """
    group = dist.group.WORLD if group is None else group
    assert group is not None
    number = _handshake_counts[group] = _handshake_counts.get(group, 0) + 1
    _Handshake(group, number).run(f"{phase} of {layer}")


def handshakes_entered(group: dist.ProcessGroup) -> int:
    """Returns how many handshakes this rank has entered in the group."""
    return _handshake_counts.get(group, 0)


class _Handshake:
    """One handshake and its keys: each rank's operation, the number of arrived ranks, and the verdict.

    The last rank to arrive compares the operations and writes the verdict, an error message or "". A rank
    that times out writes one too. Only the first verdict counts, so a late rank raises the same error.
    """

    def __init__(self, group: dist.ProcessGroup, number: int) -> None:
        self._group, self._number = group, number
        self._store = _get_process_group_store(group)
        self._world_size = dist.get_world_size(group)
        self._rank = dist.get_rank(group)

    def run(self, operation: str) -> None:
        self._store.set(self._key(self._rank), operation)
        if self._store.add(self._key("arrived"), 1) == self._world_size:
            verdict = self._store_verdict(difference_message(self._operations_of(range(self._world_size))))
            self._delete_previous_keys()
        else:
            verdict = self._await_verdict(operation)
        if verdict:
            raise DesynchronizedError(verdict)

    def _await_verdict(self, operation: str) -> str:
        timeout = policy.timeout_seconds
        warn_after = min(_WARN_AFTER_SECONDS, timeout)
        if not self._has_verdict_within(warn_after):
            logger.warning(
                "Rank %d has waited %g s for rank %s to enter %s.",
                *(dist.get_rank(), warn_after, listed(self._global(self._absent_ranks())), operation),
            )
            if not self._has_verdict_within(timeout - warn_after):
                absent = self._absent_ranks()
                present = [rank for rank in range(self._world_size) if rank not in absent]
                return self._store_verdict(
                    _absence_message(self._global(absent), self._operations_of(present), timeout)
                )
        return self._store.get(self._key("verdict")).decode()[1:]

    def _has_verdict_within(self, seconds: float) -> bool:
        try:
            self._store.wait([self._key("verdict")], timedelta(seconds=max(seconds, 0.001)))
        except RuntimeError:  # each store raises its own error; a lost one raises again at the next request
            return False
        return True

    def _store_verdict(self, verdict: str) -> str:
        """Stores a verdict unless there is one, and returns the one that is stored."""
        # compare_set treats an empty value as a missing key, hence the leading "=".
        given = self._store.compare_set(self._key("verdict"), "", f"={verdict}")
        return given.decode()[1:]

    def _absent_ranks(self) -> list[int]:
        return [rank for rank in range(self._world_size) if not self._store.check([self._key(rank)])]

    def _operations_of(self, ranks: Sequence[int]) -> dict[int, str]:
        operations = [self._store.get(self._key(rank)).decode() for rank in ranks]
        return dict(zip(self._global(ranks), operations, strict=True))

    def _global(self, ranks: Sequence[int]) -> list[int]:
        """Converts ranks of the group to global ranks, which users know."""
        return [dist.get_global_rank(self._group, rank) for rank in ranks]

    def _delete_previous_keys(self) -> None:
        # All ranks have arrived here, so none reads the keys of the previous handshake.
        previous = _Handshake(self._group, self._number - 1)
        if previous._number > 0:
            for key in (*range(self._world_size), "arrived", "verdict"):
                self._store.delete_key(previous._key(key))

    def _key(self, name: int | str) -> str:
        return f"sync_bn/{self._number}/{name}"


def difference_message(operations: dict[int, str]) -> str:
    """Returns "" if all ranks have the same operation, otherwise an error message, the most common first."""
    if len(set(operations.values())) == 1:
        return ""
    parts = []
    for text, _ in Counter(operations.values()).most_common():
        ranks = [rank for rank, other in operations.items() if other == text]
        parts.append(f"rank {listed(ranks)}: {text}")
    return (
        "The ranks do not do the same. They are about to enter\n  " + "\n  ".join(parts) + "\n"
        "Every rank must call the same synchronized layers in the same order, forward and backward."
    )


def _absence_message(absent: Sequence[int], operations: dict[int, str], seconds: float) -> str:
    return (
        f"Rank {listed(absent)} did not arrive within {seconds:g} s, while rank {listed(list(operations))} "
        f"waited to enter\n  {next(iter(operations.values()))}\n"
        "It may have skipped the layer, failed, or be busy with a long operation: for that, see "
        "sync_bn.check_ranks(timeout_seconds=...)."
    )


def listed(ranks: Sequence[int]) -> str:
    return ", ".join(map(str, ranks))
