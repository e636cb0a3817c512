"""Sums of many numbers, such as gradients, in memory that the ranks of one host share.

Each rank copies its numbers to a place of its own, adds an equal part of all ranks' numbers in the order of
the ranks into one place for the result, and copies the whole of it. In between the ranks meet in the way of
`_sums`, which finds ranks that differ, have ended or do not come.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterable, Iterator, Sequence
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

    def average(self, tensors: Iterable[Tensor], what: str) -> None:
        """Replaces tensors by their averages over the ranks, computed in their own dtype.

        tensors: on the CPU, one-dimensional and contiguous, all of one floating-point or complex dtype. what:
        what they are; the same text on all ranks.
        Collective. Raises the errors of `_sums.add`; ranks whose tensors differ in size or dtype differ.
        """
        for parts in _pieces(tensors):
            sizes = [part.numel() for part in parts]
            given = self._place(self._rank, sum(sizes), parts[0].dtype)
            result = self._place(self._ranks, len(given), given.dtype)
            met_for = self._ready(what, given)
            torch.cat(parts, out=given)
            given /= self._ranks
            first, second, *others = self._own_parts(met_for, given)
            total = torch.add(first, second, out=result[self._part(self._rank, given)])
            for other in others:
                total += other
            self._complete(what)
            for part, average in zip(parts, torch.split(result, sizes), strict=True):
                part.copy_(average)

    def own_parts(self, values: Tensor | None, like: Tensor, what: str) -> list[Tensor]:
        """Returns what each rank has given of this rank's equal part of a piece. Collective.

        values: a piece; None: this rank gives nothing, and what others get of it is undefined. like: a tensor
        of its size and dtype. The result is valid until the next call.
        """
        met_for = self._ready(what, like)
        if values is not None:
            self._place(self._rank, like.numel(), like.dtype).copy_(values)
        return self._own_parts(met_for, like)

    def gather(self, part: Tensor, out: Tensor, what: str) -> None:
        """Fills a piece with each rank's part. Collective, after `own_parts` of a piece of this size."""
        result = self._place(self._ranks, out.numel(), out.dtype)
        result[self._part(self._rank, out)] = part
        self._complete(what)
        out.copy_(result)

    def _ready(self, what: str, like: Tensor) -> str:
        """Waits until this rank may give its numbers of a piece; returns for what the ranks meet then."""
        met_for = f"{what}, {like.numel()} of {str(like.dtype).removeprefix('torch.')}"
        if self._are_read:  # by a rank that may not have finished
            self._meet(met_for)
        return met_for

    def _own_parts(self, met_for: str, like: Tensor) -> list[Tensor]:
        """Waits until all ranks have given their numbers; returns this rank's part of each one's."""
        self._meet(met_for)
        self._are_read = True
        places = [self._place(rank, like.numel(), like.dtype) for rank in range(self._ranks)]
        return [place[self._part(self._rank, like)] for place in places]

    def _complete(self, what: str) -> None:
        """Waits until the result is complete.

        It may have been written since `_own_parts`: for this piece all ranks have met with the last piece's
        result copied.
        """
        self._meet(what)
        self._are_read = False

    def _part(self, rank: int, piece: Tensor) -> slice:
        numbers = piece.numel()
        return slice(numbers * rank // self._ranks, numbers * (rank + 1) // self._ranks)

    def _place(self, index: int, numbers: int, dtype: torch.dtype) -> Tensor:
        """Returns the memory of a rank, or after those of the ranks that of the result."""
        if not numbers:
            return torch.empty(0, dtype=dtype)
        return torch.frombuffer(self._map, dtype=dtype, count=numbers, offset=index * _PIECE_BYTES)

    def _meet(self, what: str) -> None:
        _sums.add(self._all_here, self._group, what)


def _size(ranks: int) -> int:
    return (ranks + 1) * _PIECE_BYTES


def _pieces(tensors: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Cuts one-dimensional tensors of one dtype into parts, and yields as many as fit into a piece."""
    parts: list[Tensor] = []
    room = 0
    for tensor in tensors:
        left = tensor
        while len(left):
            if not room:
                if parts:
                    yield parts
                parts, room = [], _PIECE_BYTES // tensor.element_size()
            parts.append(left[:room])
            left = left[room:]
            room -= len(parts[-1])
    if parts:
        yield parts
