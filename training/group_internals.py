"""Private parts of torch.distributed that make it tell another rank: see `training.internals`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch.distributed as dist
from torch.distributed import distributed_c10d

from training.internals import collectives_entered


class _Elsewhere(dist.ProcessGroup):
    entered = 0

    def _get_sequence_number_for_group(self) -> int:  # the watchdog asks, in its thread
        return self.entered


@contextmanager
def seen_as_rank(rank: int, world_size: int) -> Iterator[None]:
    """In this context torch.distributed tells another rank and number of ranks; do not communicate in it."""
    group: Any = dist.group.WORLD
    elsewhere: Any = _Elsewhere(rank, world_size)  # type: ignore[call-arg]
    world: Any = distributed_c10d._world
    elsewhere.entered = collectives_entered() or 0
    maps: list[Any] = [each for each in (world.pg_map, world.pg_names) if group in each]
    for each in maps:
        each[elsewhere] = each[group]
    dist.group.WORLD = elsewhere
    try:
        yield
    finally:
        dist.group.WORLD = group
        for each in maps:
            del each[elsewhere]
