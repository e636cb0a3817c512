"""Sums of many numbers, such as gradients, in memory that the ranks of one host share.

Each rank copies its numbers to a place of its own, adds an equal part of all ranks' numbers in the order of
the ranks, and copies the whole result. In between the ranks meet in the way of `_sums`, which finds ranks
that differ, have ended or do not come.
"""

from __future__ import annotations

import mmap
import os
from contextlib import suppress
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from sync_bn import _shared_memory, _sums

_PIECE_BYTES = 4 * 2**20
"""How much of a tensor is added at once: the memory has this for each rank, and once for the result."""


class LargeSums:
    """Adds tensors over the ranks of a group."""

    def __init__(self, group: dist.ProcessGroup | None, descriptor: int) -> None:
        """Takes the descriptor of a file that all ranks have, of `_size(ranks)` bytes."""
        self._group, self._rank, self._ranks = group, dist.get_rank(group), dist.get_world_size(group)
        try:
            self._map = mmap.mmap(descriptor, _size(self._ranks))
        finally:
            os.close(descriptor)
        self._map.madvise(mmap.MADV_DONTFORK)  # children are no ranks
        self._all_here = torch.zeros((), dtype=torch.int64)

    @classmethod
    def agreed(cls, group: dist.ProcessGroup | None) -> LargeSums | None:
        """Returns the sums over a group, or None, on all its ranks alike, if they share no such memory.

        They share it if they are on one host, add their statistics in shared memory, and there is room for
        it. Collective: call it after `_sums.prepare`.
        """
        if not _sums.is_on_one_host(group):
            return None
        rank, size = dist.get_rank(group), _size(dist.get_world_size(group))
        path: Path | None = None
        sums: LargeSums | None = None
        try:
            with suppress(OSError):
                if rank == 0:
                    descriptor, path = _shared_memory.create_file(_sums.folder(), size)
                    sums = cls(group, descriptor)
            paths = [path if sums else None]
            dist.broadcast_object_list(paths, group=group, group_src=0)
            with suppress(OSError):
                if rank and paths[0] is not None:
                    sums = cls(group, _shared_memory.open_file(paths[0]))
            have = torch.tensor(int(sums is not None))
            _sums.add(have, group, "whether ranks share memory for gradients")
        finally:
            # All ranks have mapped it or given it up. Now it is gone when they are, however they end.
            if path is not None:
                path.unlink(missing_ok=True)
        return sums if have == dist.get_world_size(group) else None

    def add(self, values: Tensor, what: str) -> None:
        """Adds values over the ranks in place, in their own dtype.

        values: on the CPU, one-dimensional and contiguous, of any dtype that torch adds. what: what they are;
        the same text on all ranks.
        Collective. Raises the errors of `_sums.add`; ranks whose tensors differ in size or dtype differ.
        """
        text = f"{what}, {values.numel()} of {str(values.dtype).removeprefix('torch.')}"
        if not values.numel():
            self._meet(text)
            return
        for piece in torch.split(values, _PIECE_BYTES // values.element_size()):
            self._add(piece, text)

    def _add(self, values: Tensor, what: str) -> None:
        of_rank = [self._place(rank, values) for rank in range(self._ranks)]
        result = self._place(self._ranks, values)
        of_rank[self._rank].copy_(values)
        self._meet(what)
        numbers = values.numel()
        own = slice(numbers * self._rank // self._ranks, numbers * (self._rank + 1) // self._ranks)
        first, second, *others = (place[own] for place in of_rank)
        torch.add(first, second, out=result[own])
        for other in others:
            result[own] += other
        self._meet(what)
        # No rank writes its place again before all have read it, nor the result before all have copied it:
        # a meeting is in between.
        values.copy_(result)

    def _place(self, index: int, like: Tensor) -> Tensor:
        """Returns the memory of a rank, or after those of the ranks that of the result."""
        return torch.frombuffer(self._map, dtype=like.dtype, count=like.numel(), offset=index * _PIECE_BYTES)

    def _meet(self, what: str) -> None:
        _sums.add(self._all_here, self._group, what)


def _size(ranks: int) -> int:
    return (ranks + 1) * _PIECE_BYTES
