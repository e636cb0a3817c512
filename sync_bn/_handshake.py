"""The handshake: before they meet in a collective, ranks make sure that they are about to do the same.

It goes through the key-value store that every process group has, and not through a collective, because a
collective that only some ranks have entered, or with other contents, is what it has to prevent. It takes a
handful of requests of each rank, and nothing of the device.
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
    """Ranks of a process group were about to do different things, or did not come; says which and what."""


@dataclass
class Policy:
    """When layers check, and how long a rank waits for the others. See `check_ranks`."""

    steps: float = 2
    timeout_seconds: float = 30.0


policy = Policy()

_steps_checked: Counter[str] = Counter()
"""Steps of each layer that this process has checked.

A layer's copies and pickles share its key, so a rank that alone loads a layer again does not wait for a check
that no other rank makes.
"""

_meetings: WeakKeyDictionary[dist.ProcessGroup, int] = WeakKeyDictionary()
"""How often this process has met the other ranks of a group: the same on all of them."""


def check_ranks(*, steps: int | None = 2, timeout_seconds: float = 30.0) -> None:
    """Sets how long layers make sure, before each collective, that all ranks are about to do the same.

    Checked are the layer, its number of channels, the dtype of its input, whether gradients are needed, and
    forward or backward; whoever differs, or does not come within `timeout_seconds`, is a
    `DesynchronizedError` on every rank that is there, instead of a hang.

    steps: of each layer, counted on every rank for itself: 2 is the default, None is always, 0 never. A check
    takes about as long as a collective or two; a step without costs nothing. Call it on every rank alike,
    before the first step.
    """
    if steps is not None and steps < 0:
        raise ValueError(f"steps={steps}: expected a number of steps from 0 on, or None for always.")
    if not timeout_seconds > 0:
        raise ValueError(f"timeout_seconds={timeout_seconds}: expected a time above 0.")
    policy.steps = float("inf") if steps is None else steps
    policy.timeout_seconds = timeout_seconds


def new_key() -> str:
    """For a layer that is about to be checked for the first time."""
    return uuid.uuid4().hex


def is_checked(key: str) -> bool:
    return _steps_checked[key] >= policy.steps


def count_step(key: str) -> None:
    _steps_checked[key] += 1


def meet(group: dist.ProcessGroup | None, layer: str, phase: str) -> None:
    """Waits until all ranks of the group are here, for this phase of this layer; raises if one is not."""
    group = dist.group.WORLD if group is None else group
    assert group is not None
    number = _meetings[group] = _meetings.get(group, 0) + 1
    _Meeting(group, number).attend(f"{phase} of {layer}")


class _Meeting:
    """The keys of one meeting: what each rank is about to do, how many have come, and the verdict on it.

    Whoever comes last compares and gives the verdict, which is empty if all is well. A rank that has waited
    too long gives one too; only the first counts, so that a rank that comes later raises the same.
    """

    def __init__(self, group: dist.ProcessGroup, number: int) -> None:
        self._group, self._number = group, number
        self._store = _get_process_group_store(group)
        self._world_size = dist.get_world_size(group)
        self._rank = dist.get_rank(group)

    def attend(self, about_to: str) -> None:
        self._store.set(self._key(self._rank), about_to)
        if self._store.add(self._key("arrived"), 1) == self._world_size:
            verdict = self._give_verdict(_differences(self._said_by(range(self._world_size))))
            self._forget_previous()
        else:
            verdict = self._await_verdict(about_to)
        if verdict:
            raise DesynchronizedError(verdict)

    def _await_verdict(self, about_to: str) -> str:
        patience = policy.timeout_seconds
        at_first = min(_WARN_AFTER_SECONDS, patience)
        if not self._has_verdict_within(at_first):
            logger.warning(
                "Rank %d has waited %g s for rank %s, to enter %s.",
                *(dist.get_rank(), at_first, _listed(self._global(self._absent())), about_to),
            )
            if not self._has_verdict_within(patience - at_first):
                absent = self._absent()
                present = [rank for rank in range(self._world_size) if rank not in absent]
                return self._give_verdict(_absence(self._global(absent), self._said_by(present), patience))
        return self._store.get(self._key("verdict")).decode()[1:]

    def _has_verdict_within(self, seconds: float) -> bool:
        try:
            self._store.wait([self._key("verdict")], timedelta(seconds=max(seconds, 0.001)))
        except RuntimeError:  # each kind of store has its own; one that is gone raises again when it is asked
            return False
        return True

    def _give_verdict(self, verdict: str) -> str:
        """The verdict that counts: this one, or the one that was given before."""
        # An empty value would be taken for a missing key, hence the first letter.
        given = self._store.compare_set(self._key("verdict"), "", f"={verdict}")
        return given.decode()[1:]

    def _absent(self) -> list[int]:
        return [rank for rank in range(self._world_size) if not self._store.check([self._key(rank)])]

    def _said_by(self, ranks: Sequence[int]) -> dict[int, str]:
        said = [self._store.get(self._key(rank)).decode() for rank in ranks]
        return dict(zip(self._global(ranks), said, strict=True))

    def _global(self, ranks: Sequence[int]) -> list[int]:
        """Ranks of the group as ranks of the whole job, which is what users know them by."""
        return [dist.get_global_rank(self._group, rank) for rank in ranks]

    def _forget_previous(self) -> None:
        # All have come here, so nobody reads the keys of the meeting before.
        previous = _Meeting(self._group, self._number - 1)
        if previous._number > 0:
            for key in (*range(self._world_size), "arrived", "verdict"):
                self._store.delete_key(previous._key(key))

    def _key(self, of: int | str) -> str:
        return f"sync_bn/{self._number}/{of}"


def _differences(said: dict[int, str]) -> str:
    """Empty if all said the same; otherwise what each said, those who are many first."""
    if len(set(said.values())) == 1:
        return ""
    parts = []
    for text, _ in Counter(said.values()).most_common():
        ranks = [rank for rank, other in said.items() if other == text]
        parts.append(f"rank {_listed(ranks)}: {text}")
    return (
        "The ranks do not do the same. They are about to enter\n  " + "\n  ".join(parts) + "\n"
        "Every rank has to call the same synchronized layers in the same order, forward and backward."
    )


def _absence(absent: Sequence[int], said: dict[int, str], seconds: float) -> str:
    return (
        f"Rank {_listed(absent)} did not come within {seconds:g} s, while rank {_listed(list(said))} waited "
        f"to enter\n  {next(iter(said.values()))}\n"
        "It may have skipped the layer, failed, or be busy with something long: for that, see "
        "sync_bn.check_ranks(timeout_seconds=...)."
    )


def _listed(ranks: Sequence[int]) -> str:
    return ", ".join(map(str, ranks))
