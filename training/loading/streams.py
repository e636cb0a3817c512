"""Streams (IterableDataset): rank 0 reads them, and deals the samples of each global batch to all ranks.

The batches are those that one process would read, for any number of ranks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch.utils.data import DataLoader

from training.errors import BuildError
from training.loading.counted import Position
from training.loading.dropped_samples import Kept, collated
from training.loading.empty_shares import Placeholder, empty_batch
from training.loading.rank_zero import Scatter, from_rank_zero
from training.loading.stream_reader import StreamReader
from training.spec import shares

_STEPS_KEPT = 4  # Lightning fetches one batch before it is needed


@dataclass(frozen=True, kw_only=True)
class StepShare:
    """A rank's share of a global batch.

    sizes: samples of each micro-batch, over all ranks. micro_batches: this rank's samples of each. stand_in:
    a sample of which an empty share makes a batch without samples.
    """

    sizes: list[int]
    micro_batches: list[list[Any]]
    stand_in: Any


class StreamLoader:
    """Yields this rank's share of each micro-batch of a stream; Lightning uses it as a loader.

    Iterating is collective, from the first batch on: ranks must ask for batches at the same time. An error of
    the stream reaches all ranks. Lightning saves and loads `state_dict`: the epoch, and the number of its
    batches that were taken. To continue within an epoch, rank 0 reads it again up to there.
    """

    batch_sampler = None  # Lightning looks here to find out whether a loader shuffles

    def __init__(
        self,
        loader: DataLoader[Any],
        *,
        batch_size: int,
        rank: int,
        world_size: int,
        seed: int,
        drop_last: bool,
        accumulate_grad_batches: int,
    ) -> None:
        """Collective. Raises BuildError for a stream whose length is 0, or too short for a batch."""
        self.rank, self.world_size = rank, world_size
        self.collate, self.accumulate_grad_batches = loader.collate_fn, accumulate_grad_batches
        self._reader = StreamReader(
            loader,
            batch_size=batch_size,
            seed=seed,
            drop_last=drop_last,
            micro_batches=accumulate_grad_batches,
        )
        self._length = from_rank_zero(lambda: self._reader.length)
        if self._length == 0:
            raise BuildError("data", f"the stream has too few samples for a batch of {batch_size}")
        self._scatter = Scatter()
        self.epoch = 0
        self._start = self._taken = (0, 0)
        self._sizes: dict[int, list[int]] = {}  # by step
        self._placeholders: frozenset[int] = frozenset()
        self._kept: dict[int, int] = {}

    @property
    def sampler(self) -> StreamLoader:
        """Lightning looks here for the object whose `set_epoch` it calls before each epoch."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch that the next iteration yields."""
        self.epoch = epoch

    def start_at(self, epoch: int, batch: int) -> None:
        """Makes the next iteration of `epoch` start at micro-batch `batch`, counted from 0; once only."""
        self.epoch = epoch
        self._start = self._taken = (epoch, batch)

    def __len__(self) -> int:
        if self._length is None:
            raise TypeError("the stream has no length")
        return self._length

    def __iter__(self) -> Iterator[Any]:
        epoch, first = self.epoch, self._start[1] if self._start[0] == self.epoch else 0
        self._start = (0, 0)  # once
        self._sizes, self._placeholders, self._kept = {}, frozenset(), {}
        step, done = divmod(first, self.accumulate_grad_batches)
        batches = self._reader.batches(epoch, skip=step)
        number = first
        while number != self._length and (share := self._next(batches)) is not None:
            self._sizes[step] = share.sizes
            self._sizes.pop(step - _STEPS_KEPT, None)
            for samples in share.micro_batches[done:]:
                batch = self._collate(samples, share.stand_in, number)
                number += 1
                self._taken = (epoch, number)
                yield batch
            step, done = step + 1, 0

    def samples(self, number: int) -> int:
        """Returns how many samples this rank's share of a micro-batch of the running epoch has."""
        if number in self._kept:
            return self._kept[number]
        return shares(self.samples_of_batch(number), self.world_size)[self.rank]

    def samples_of_batch(self, number: int) -> int:
        """Returns the number of samples of a micro-batch, over all ranks."""
        step, part = divmod(number, self.accumulate_grad_batches)
        return self._sizes[step][part]

    def samples_of_step(self, number: int, micro_batches: int) -> int:
        """Returns how many samples the optimizer step has over all ranks and micro-batches."""
        if micro_batches != self.accumulate_grad_batches:
            raise BuildError(
                "training.accumulate_grad_batches",
                f"the Trainer accumulates {micro_batches} batches, but a stream is cut into steps of "
                f"{self.accumulate_grad_batches}; set this key instead",
            )
        return sum(self._sizes[number // micro_batches])

    def position(self, number: int) -> Position:
        """Returns where this rank's samples of a micro-batch are."""
        step, part = divmod(number, self.accumulate_grad_batches)
        sizes = self._sizes[step]
        before = sum(sizes[:part]) + sum(shares(sizes[part], self.world_size)[: self.rank])
        return Position(step, part, before)

    def is_placeholder(self, number: int) -> bool:
        """Returns whether a `Placeholder` stood in for an empty share of the running epoch."""
        return number in self._placeholders

    def state_dict(self) -> dict[str, int]:
        epoch, batch = self._taken
        return {"epoch": epoch, "batch": batch}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.start_at(state["epoch"], state["batch"])

    def _next(self, batches: Iterator[list[Any]]) -> StepShare | None:
        """Returns this rank's share of the next global batch, None at the end. Every rank reaches this."""

        def parts() -> list[StepShare | None]:
            batch = next(batches, None)
            return [self._part(batch, rank) if batch else None for rank in range(self.world_size)]

        return self._scatter(parts)

    def _part(self, batch: list[Any], rank: int) -> StepShare:
        sizes = [size for size in shares(len(batch), self.accumulate_grad_batches) if size]
        begin, own = 0, []
        for size in sizes:
            of_ranks = shares(size, self.world_size)
            start = begin + sum(of_ranks[:rank])
            own.append(batch[start : start + of_ranks[rank]])
            begin += size
        return StepShare(sizes=sizes, micro_batches=own, stand_in=None if all(own) else batch[0])

    def _collate(self, samples: list[Any], stand_in: Any, number: int) -> Any:
        if samples:
            batch = collated(self.collate, samples)
        else:
            batch = empty_batch(self.collate([stand_in]), self.collate([stand_in, stand_in]))
        if isinstance(batch, Placeholder):
            self._placeholders |= {number}
            return batch.batch
        if isinstance(batch, Kept):
            self._kept[number] = batch.samples
            return batch.batch
        return batch
