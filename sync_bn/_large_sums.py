"""Sums of many numbers, such as gradients, in memory that the ranks of one host share.

Each rank copies its numbers to a place of its own, adds an equal part of all ranks' numbers in the order of
the ranks, and copies the whole result. In between the ranks meet in the way of `_sums`, which finds ranks
that differ, have ended or do not come.
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

Piece = Sequence[Tensor]
"""Parts of tensors that are exchanged at once."""


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

    def average(self, tensors: Iterable[Tensor], what: str) -> None:
        """Replaces tensors by their averages over the ranks, computed in their own dtype.

        tensors: on the CPU, one-dimensional and contiguous, all of one floating-point or complex dtype. what:
        what they are; the same text on all ranks.
        Collective. Raises the errors of `_sums.add`; ranks whose tensors differ in size or dtype differ.
        """
        for piece in pieces(tensors):
            first, *others = self.own_parts(piece, piece, what)
            total = first / self._ranks
            for other in others:
                total += other / self._ranks
            self.gather(total, piece, what)

    def own_parts(self, values: Piece | None, like: Piece, what: str) -> list[Tensor]:
        """Returns what each rank has given of this rank's equal part of a piece. Collective.

        values: what this rank gives; None: nothing, and what others get of it is undefined. like: tensors of
        the same sizes and dtype. The result is valid until the next call.
        """
        numbers, dtype = _size_of(like)
        what = f"{what}, {numbers} of {str(dtype).removeprefix('torch.')}"
        if self._are_read:  # by a rank that may not have finished
            self._meet(what)
        if values is not None:
            torch.cat(list(values), out=self._place(self._rank, like))
        self._meet(what)
        self._are_read = True
        return [self._own_part(self._place(rank, like)) for rank in range(self._ranks)]

    def gather(self, part: Tensor, out: Piece, what: str) -> None:
        """Fills a piece with each rank's part. Collective, after `own_parts` of a piece of this size."""
        result = self._place(self._ranks, out)
        # Since the last piece, whose result all have copied, they have met for the parts of this one.
        self._own_part(result).copy_(part)
        self._meet(what)
        self._are_read = False
        for values, complete in zip(out, torch.split(result, [len(each) for each in out]), strict=True):
            values.copy_(complete)

    def _own_part(self, place: Tensor) -> Tensor:
        numbers = len(place)
        return place[numbers * self._rank // self._ranks : numbers * (self._rank + 1) // self._ranks]

    def _place(self, index: int, like: Piece) -> Tensor:
        """Returns the memory of a rank, or after those of the ranks that of the result."""
        numbers, dtype = _size_of(like)
        return torch.frombuffer(self._map, dtype=dtype, count=numbers, offset=index * _PIECE_BYTES)

    def _meet(self, what: str) -> None:
        _sums.add(self._all_here, self._group, what)


def pieces(tensors: Iterable[Tensor]) -> Iterator[Piece]:
    """Cuts one-dimensional tensors of one dtype into what can be exchanged at once. No piece is empty."""
    piece: list[Tensor] = []
    room = 0
    for tensor in tensors:
        left = tensor
        while len(left):
            if not room:
                if piece:
                    yield piece
                piece, room = [], _PIECE_BYTES // tensor.element_size()
            piece.append(left[:room])
            left = left[room:]
            room -= len(piece[-1])
    if piece:
        yield piece


def _size_of(piece: Piece) -> tuple[int, torch.dtype]:
    return sum(map(len, piece)), piece[0].dtype


def _size(ranks: int) -> int:
    return (ranks + 1) * _PIECE_BYTES
