"""Sums over all shards of a batch that do not depend on which worker has which of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from sync_bn import _sums
from sync_bn._large_sums import LargeSums


def dealt(shards: int, rank: int, world_size: int) -> range:
    """Returns the shards of a rank: consecutive ones, as equally many on each rank as possible.

    >>> [dealt(4, rank, 3) for rank in range(3)]
    [range(0, 1), range(1, 2), range(2, 4)]
    """
    return range(shards * rank // world_size, shards * (rank + 1) // world_size)


class Exchange:
    """What the ranks tell one another about their shards, over the default process group.

    shards: of a batch, in all. own: those of this rank. Every rank must call each method equally often and in
    the same order.
    """

    def __init__(self, shards: int, rank: int, world_size: int) -> None:
        self.shards, self.rank, self.world_size = shards, rank, world_size
        self.own = dealt(shards, rank, world_size)
        self.memory: LargeSums | None = None
        """In which the ranks add many numbers, if they share it."""

    def owner(self, shard: int) -> int:
        """Returns the rank of a shard."""
        ranks = range(self.world_size)
        return next(rank for rank in ranks if shard in dealt(self.shards, rank, self.world_size))

    def share_memory(self, device_type: str) -> None:
        """Lets ranks of one host add in memory that they share. Collective: call it where all ranks meet.

        device_type: that of the rows.
        """
        if self.world_size > 1:
            _sums.prepare(None, torch.device(device_type))
            self.memory = LargeSums.agreed(None)

    def rows(self, own: Tensor) -> Tensor:
        """Returns a row of every shard, in the order of the shards. Collective.

        own: (shards of this rank, n) of a dtype that the process group adds; n is the same on all ranks.
        Returns (shards, n). The rows are added to zeros, which is exact, with the exception that -0 becomes
        0, also where this rank has all shards.
        """
        if self.own == range(self.shards):
            return own + 0
        table = own.new_zeros(self.shards, own.shape[1])
        table[list(self.own)] = own + 0
        if self.world_size > 1 and not _sums.add(table, None, "the rows of all shards"):
            dist.all_reduce(table)
        return table

    def sum(self, own: Tensor) -> Tensor:
        """Returns the sum of all shards' rows, added in the order of the shards. Collective.

        own: as in `rows`. Returns (n,).
        """
        return in_order(self.rows(own).unbind())

    def objects(self, own: Sequence[Any]) -> list[Any]:
        """Returns an object of every shard, in the order of the shards. Collective."""
        return [each for rank in self.of_ranks(own) for each in rank]

    def of_ranks(self, own: Any) -> list[Any]:
        """Returns an object of every rank. Collective."""
        if self.world_size == 1:
            return [own]
        ranks: list[Any] = [None] * self.world_size
        dist.all_gather_object(ranks, own)
        return ranks


class Alone(Exchange):
    """One rank with all shards, which has them in an order of its own; communicates with nobody.

    order: of the numbers from 0.
    """

    def __init__(self, order: range) -> None:
        super().__init__(len(order), 0, 1)
        self.own = order


def in_order(parts: Sequence[Tensor]) -> Tensor:
    """Returns the sum of tensors, added one after another. At least one."""
    total = parts[0].clone()
    for part in parts[1:]:
        total += part
    return total
