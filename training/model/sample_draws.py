"""Numbers drawn for the samples of a batch, the same whichever rank has them.

What is drawn for a sample is a function of

    (seed, epoch, step, which draw of the step, position of the sample in the global batch) .

Which dimension of a tensor holds this rank's n samples follows from its shape:

1. None, for a parameter or a single number.
2. The first, if its size is n.
3. The second, if its size is n: sequences may have time first. In a matrix, 4 comes before 3.
4. The first, if its size is a multiple of n: [n T, C] has T rows of each sample.

A tensor in which none does is drawn as a whole, the same on all ranks: noise of weights, or one number for
the batch. There are four exceptions:

- A tensor that is made in the shape of a parameter is noise of weights, unless rule 2 holds.
- A vector that is made is not cut by rule 4.
- With one sample, a vector of one number that is made is one number for the batch: code may decide by it.
- The activations of a Dropout in which no dimension holds samples are drawn by each rank for itself, unless
  the first dimension has size 1, as of what is added to every sample.

Which draw of the step: an index that is equal on all ranks, ranks without samples included. Each draw takes a
number from torch's default generator, and the index is remembered for that number. A layer that activation
checkpointing computes again takes the same numbers, because torch has put the generator back, and gets the
same indices.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn

from training import rng_internals

WHOLE, OWN = -1, -2
"""In place of a dimension: the same numbers on all ranks; other numbers on each rank."""
BLOCK = 8192
"""The least numbers to draw after a generator is seeded, which takes as long as drawing some hundred."""

Fill = Callable[[Tensor, torch.Generator], object]
"""Draws a contiguous tensor in place."""


class Share(NamedTuple):
    """The samples of the running micro-batch that a rank has.

    samples: how many. epoch, step, micro_batch: where the run is, equal on all ranks; the step within the
    epoch, and the micro-batch within the step. first: the position of the first sample in the global batch.
    """

    samples: int
    epoch: int
    step: int
    micro_batch: int
    first: int


class SampleDraws:
    """Draws for the samples of one share after another."""

    def __init__(self, *, seed: int, rank: int) -> None:
        self._seed, self._rank = seed, rank
        self.unwatched: Callable[[], AbstractContextManager[object]] = nullcontext
        """Returns a context in which the default generators change although nothing uncovered draws."""
        self._indices: dict[int, int] = {}
        self._number = torch.empty((), dtype=torch.int64)
        self._generators: dict[torch.device, torch.Generator] = {}

    def begin(self, module: nn.Module, share: Share) -> int:
        """Begins the step of a share. Returns the seed of the rank for what is not covered."""
        self._share = share
        self._module = module
        self._origin = struct.pack("<3Q", self._seed, share.epoch, share.step)
        self._indices = {}
        return self._hash(-1, share.micro_batch, self._rank)

    def next_index(self) -> int:
        """Returns which draw of the step the next one is."""
        with self.unwatched():
            number = int(self._number.random_())
        return self._indices.setdefault(number, len(self._indices))

    def uniform_for(self, index: int, x: Tensor, shape: torch.Size) -> Tensor | None:
        """Returns numbers between 0 and 1 for activations x; None if each rank is to draw for itself.

        shape: of the numbers; in its first two dimensions it is that of x.
        """
        dimension = self.dimension(x, made=False)
        if dimension == OWN:
            return None
        numbers = torch.empty(shape, device=x.device, dtype=torch.float32)
        self._fill(index, numbers, dimension, lambda part, own: part.uniform_(generator=own))
        return numbers

    def fill(self, index: int, made: Tensor, fill: Fill, *, like: object = None) -> None:
        """Draws a tensor in place. like: what it was made from; if that is a parameter, it counts as one."""
        whole = isinstance(like, nn.Parameter)
        with torch.no_grad(), rng_internals.as_tensors():
            self._fill(index, made, WHOLE if whole else self.dimension(made, made=True), fill)

    def dimension(self, x: Tensor, *, made: bool) -> int:
        """Returns the dimension that holds the samples, WHOLE, or OWN.

        made: whether `x` is to be drawn; otherwise it is the activations of a Dropout.
        """
        shape, samples = x.shape, self._share.samples
        if isinstance(x, nn.Parameter) or not shape or not samples:
            return WHOLE
        if made and samples == 1 and tuple(shape) == (1,):
            return WHOLE
        if shape[0] == samples:
            return 0
        if made and any(parameter.shape == shape for parameter in self._module.parameters()):
            return WHOLE
        if len(shape) > 2 and shape[1] == samples:
            return 1
        if shape[0] % samples == 0 and not (made and len(shape) == 1):
            return 0
        if len(shape) == 2 and shape[1] == samples:
            return 1
        return WHOLE if made or shape[0] == 1 else OWN

    def _fill(self, index: int, out: Tensor, dimension: int, fill: Fill) -> None:
        if not out.numel() or out.is_meta:
            return
        if dimension == WHOLE:
            fill(out, self._seeded(out.device, index, -1 - self._share.micro_batch))
            return
        shape = [*out.shape[dimension : dimension + 1], *out.shape[:dimension], *out.shape[dimension + 1 :]]
        drawn = out if not dimension and out.is_contiguous() else out.new_empty(shape)
        self._fill_rows(index, drawn.view(self._share.samples, -1), fill)
        if drawn is not out:
            out.copy_(drawn.movedim(0, dimension))

    def _fill_rows(self, index: int, rows: Tensor, fill: Fill) -> None:
        """Draws the row of each sample, in blocks of rows that begin at the same positions on all ranks."""
        first = self._share.first
        end, width = first + len(rows), rows.shape[1]
        size = max(1, BLOCK // width)
        for number in range(first // size, -(-end // size)):
            start, stop = number * size, (number + 1) * size
            generator = self._seeded(rows.device, index, number)
            own = rows[max(start - first, 0) : stop - first]
            if len(own) == size:
                fill(own, generator)
            else:
                block = rows.new_empty(size, width)
                fill(block, generator)
                own.copy_(block[max(first - start, 0) :][: len(own)])

    def _seeded(self, device: torch.device, *which: int) -> torch.Generator:
        if device not in self._generators:
            self._generators[device] = torch.Generator(device)
        return self._generators[device].manual_seed(self._hash(*which))

    def _hash(self, *which: int) -> int:
        origin = self._origin + struct.pack(f"<{len(which)}q", *which)
        return int.from_bytes(hashlib.blake2b(origin, digest_size=7).digest())
