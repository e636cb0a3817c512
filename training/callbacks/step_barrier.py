"""A barrier at the end of a step's own work that tells when other ranks have gone on without this one.

It uses the key-value store of the process group: a rank that has left something out would meet the others in
a collective of another kind, which hangs, ends the process or mixes up their numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from training import internals

_SECONDS = 1.0  # in which the files of the other ranks change


class StepBarrier:
    """Ranks wait for one another, but not for a rank that waits for them.

    ahead: returns the ranks that have entered more collectives than this one, perhaps with a delay.
    """

    def __init__(self, ahead: Callable[[], list[int]]) -> None:
        self._ahead, self._number = ahead, 0

    def wait(self) -> list[int]:
        """Blocks until all ranks have called it, and returns []; two requests to the store if they have.

        If some ranks enter a collective instead, returns these: they wait there for this one.
        """
        store, self._number = internals.group_store(), self._number + 1
        arrived, all_came = _keys(self._number)
        if store.add(arrived, 1) == dist.get_world_size():
            store.set(all_came, "1")
            for key in _keys(self._number - 1):  # all have left that one, since they are here
                store.delete_key(key)
        while not _is_set(store, all_came):
            ahead = self._ahead()
            # Race closed: ranks that go on because all have come do so after the key is set.
            if ahead and not store.check([all_came]):
                return ahead
        return []


def _keys(number: int) -> tuple[str, str]:
    return f"training/step/{number}/arrived", f"training/step/{number}/all"


def _is_set(store: Any, key: str) -> bool:
    try:
        store.wait([key], timedelta(seconds=_SECONDS))
    except RuntimeError:  # each store raises its own error; a lost one raises again at the next request
        return False
    return True
