"""Sums of many numbers, such as gradients, in memory that the ranks of one host share.

Each rank copies its numbers to a place of its own, adds an equal part of all ranks' numbers in the order of
the ranks, and copies the whole result. In between the ranks meet in the way of `_sums`, which finds ranks
that differ, have ended or do not come.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence
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
        self._are_read = False
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

    def pieces(self, values: Tensor) -> Sequence[Tensor]:
        """Returns views of as many values as can be exchanged at once."""
        return torch.split(values, _PIECE_BYTES // values.element_size())

    def add(self, values: Tensor, what: str) -> None:
        """Adds values over the ranks in place, in their own dtype.

        values: on the CPU, one-dimensional and contiguous, of any dtype that torch adds. what: what they are;
        the same text on all ranks.
        Collective. Raises the errors of `_sums.add`; ranks whose tensors differ in size or dtype differ.
        """
        for piece in self.pieces(values):
            first, second, *others = self.own_parts(piece, piece, what)
            total = first + second
            for other in others:
                total += other
            self.gather(total, piece, what)

    def own_parts(self, values: Tensor | None, like: Tensor, what: str) -> list[Tensor]:
        """Returns what each rank has given of this rank's equal part of a piece. Collective.

        values: a piece; None: this rank gives nothing, and what others get of it is undefined. like: a tensor
        of its size and dtype. The result is valid until the next call.
        """
        what = f"{what}, {like.numel()} of {str(like.dtype).removeprefix('torch.')}"
        if self._are_read:  # by a rank that may not have finished
            self._meet(what)
        if values is not None:
            self._place(self._rank, like).copy_(values)
        self._meet(what)
        self._are_read = True
        return [self._place(rank, like)[self._part(self._rank, like)] for rank in range(self._ranks)]

    def gather(self, part: Tensor, out: Tensor, what: str) -> None:
        """Fills a piece with each rank's part. Collective, after `own_parts` of a piece of this size."""
        result = self._place(self._ranks, out)
        # Since the last piece, whose result all have copied, they have met for the parts of this one.
        result[self._part(self._rank, out)] = part
        self._meet(what)
        self._are_read = False
        out.copy_(result)

    def _part(self, rank: int, piece: Tensor) -> slice:
        numbers = piece.numel()
        return slice(numbers * rank // self._ranks, numbers * (rank + 1) // self._ranks)

    def _place(self, index: int, like: Tensor) -> Tensor:
        """Returns the memory of a rank, or after those of the ranks that of the result."""
        if not like.numel():
            return torch.empty_like(like)
        return torch.frombuffer(self._map, dtype=like.dtype, count=like.numel(), offset=index * _PIECE_BYTES)

    def _meet(self, what: str) -> None:
        _sums.add(self._all_here, self._group, what)


def _size(ranks: int) -> int:
    return (ranks + 1) * _PIECE_BYTES
