"""Global batches, and the share of each that a rank takes.

The order of samples depends only on (seed, epoch). Each global batch is cut in order into micro-batches, and
each micro-batch into shares, so a step has the same samples for any world size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler, TensorDataset

from training.errors import BuildError
from training.loading.counted import Position
from training.loading.dropped_samples import Kept, collated
from training.loading.empty_shares import Placeholder, empty_batch
from training.loading.generators import seeds_of
from training.loading.orders import Order, Orders, SeededOrders
from training.loading.sample_rng import EmptyShare, Indices, SamplesInParts, SeededCollate, SeededSamples
from training.loading.samplers import SamplerOrders, has_plain_batches, is_shuffled, sampler_of
from training.loading.sharded import Shard, ShardedBatch, shard_of
from training.loading.streams import StreamLoader
from training.spec import shares


class Shards(NamedTuple):
    """Into how many parts a micro-batch is cut, and which consecutive ones a rank has."""

    number: int
    own: range


class GlobalBatches(Sampler[Indices]):
    """Yields this rank's share of each micro-batch, as `Indices` of samples; a share may be empty.

    A global batch has `accumulate_grad_batches` micro-batches, or one per sample if it has fewer samples.
    Only the last batch of an epoch may have fewer samples than that. The index of each batch's first
    micro-batch is therefore a multiple of `accumulate_grad_batches`, as Lightning expects.

    If `orders` are those of a user's sampler, the first use of an epoch is collective: of its length too.

    shards: of each micro-batch, and those that this rank has; None: one for each rank. With shards, the
    share is the samples of several parts.
    """

    def __init__(
        self,
        orders: Orders,
        *,
        rank: int,
        world_size: int,
        accumulate_grad_batches: int = 1,
        shards: Shards | None = None,
    ) -> None:
        self.orders, self.rank, self.world_size = orders, rank, world_size
        self.shards = shards
        self._cuts = Shards(world_size, range(rank, rank + 1)) if shards is None else shards
        self.accumulate_grad_batches = accumulate_grad_batches
        self.epoch = self.cycle = 0
        self.repeats = False
        """Whether to iterate again within an epoch is to have new draws, in a new order if it is shuffled."""
        self._finished: int | None = None
        self._start = (0, 0)
        self._drawn: tuple[int, Order] | None = None

    @property
    def sampler(self) -> GlobalBatches:
        """Lightning looks here for the object whose `set_epoch` it calls before each epoch."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch that the next iteration yields."""
        if epoch != self.epoch:
            self.epoch, self.cycle = epoch, 0

    def start_at(self, epoch: int, batch: int, cycle: int = 0) -> None:
        """Makes the next iteration of `epoch` start at micro-batch `batch`, counted from 0; once only.

        If `batch` equals the length, the epoch yields nothing. cycle: how often it was iterated before.
        """
        self.epoch, self._start, self.cycle = epoch, (epoch, batch), cycle

    @property
    def first(self) -> int:
        """The micro-batch at which the next iteration starts."""
        epoch, batch = self._start
        return batch if epoch == self.epoch else 0

    def share(self, number: int) -> int:
        """Returns how many samples this rank's share of a micro-batch has."""
        return sum(self._own_sizes(number)[1])

    def count(self, start: int, stop: int) -> int:
        """Returns the number of samples in the micro-batches `start` to `stop - 1`, over all ranks."""
        return self._begin(stop) - self._begin(start)

    def position(self, number: int) -> Position:
        """Returns where this rank's share of a micro-batch is in its global batch."""
        step, part = divmod(number, self.accumulate_grad_batches)
        before, _ = self._own_sizes(number)
        return Position(step, part, self._begin(number) + before - self.order.begin(step))

    def __len__(self) -> int:
        whole = len(self.order.ends) - 1
        if whole < 0:
            return 0
        last = self.order.begin(whole + 1) - self.order.begin(whole)
        return whole * self.accumulate_grad_batches + min(last, self.accumulate_grad_batches)

    def __iter__(self) -> Iterator[Indices]:
        if self.repeats and self._finished == self.epoch:
            self.cycle += 1
        order, epoch, first = self.order, self.epoch, self.first
        self._start = (0, 0)  # once
        for number in range(first, len(self)):
            yield self._indices(order, epoch, number)
        self._finished = epoch

    def indices(self, number: int) -> Indices:
        """Returns this rank's share of a micro-batch of the running epoch."""
        return self._indices(self.order, self.epoch, number)

    def _indices(self, order: Order, epoch: int, number: int) -> Indices:
        before, sizes = self._own_sizes(number)
        start = self._begin(number) + before
        own = slice(start, start + sum(sizes))
        return Indices(
            list(order.entries[own]),
            epoch=_draw(epoch, self.cycle),
            occurrences=order.occurrences and order.occurrences[own],
            stand_in=order.entries[self._begin(number)],
            parts=None if self.shards is None else sizes,
        )

    @property
    def order(self) -> Order:
        """The order of the running epoch."""
        # Batches of a sampler's own may have other sizes when they are drawn anew, which others rely on.
        shuffles = isinstance(self.orders, SeededOrders)
        draw = _draw(self.epoch, self.cycle if shuffles else 0)
        if self._drawn is None or self._drawn[0] != draw:
            self._drawn = draw, self.orders.of(draw)
        return self._drawn[1]

    def _own_sizes(self, number: int) -> tuple[int, list[int]]:
        """Returns how many samples of a micro-batch precede this rank's, and those of each of its parts."""
        sizes = shares(self.count(number, number + 1), self._cuts.number)
        return sum(sizes[: self._cuts.own.start]), sizes[self._cuts.own.start : self._cuts.own.stop]

    def _begin(self, number: int) -> int:
        """Returns the position in the sample order at which a micro-batch begins; the end after the last."""
        step, part = divmod(number, self.accumulate_grad_batches)
        begin, end = self.order.begin(step), self.order.begin(step + 1)
        return begin + sum(shares(end - begin, self.accumulate_grad_batches)[:part])


def _draw(epoch: int, cycle: int) -> int:
    """Returns a number of its own for each iteration within an epoch; the first has that of the epoch."""
    return epoch + (cycle << 40)


class ShareLoader(DataLoader[Any]):
    """A DataLoader over `GlobalBatches` that Lightning can resume within an epoch.

    Lightning requests an iterator before it sets the epoch, and an iterator starts the loader's processes.
    Nothing is therefore fetched before the first batch is requested. Lightning saves and loads `state_dict`:
    the epoch, and the number of its batches that were taken.
    """

    batch_sampler: GlobalBatches
    size_by_user: int | None = None
    """The batch size that the user's loader has, which a global batch need not have."""
    _taken: tuple[int, int] | None = None
    _placeholders: frozenset[int] = frozenset()
    _kept: Mapping[int, int] = {}

    def __iter__(self) -> Any:
        epoch, number = self.batch_sampler.epoch, self.batch_sampler.first
        self._placeholders, self._kept = frozenset(), {}
        for batch in super().__iter__():
            if isinstance(batch, Placeholder):
                self._placeholders |= {number}
            if isinstance(batch, Kept):
                self._kept = {**self._kept, number: batch.samples}
            number += 1
            self._taken = (epoch, number)
            yield batch.batch if isinstance(batch, Placeholder | Kept) else batch

    def anew(
        self, shares: Sequence[Indices], *, seed: int = 0, collate: Callable[[list[Any]], Any] | None = None
    ) -> list[Any]:
        """Returns the batches of `shares`, as this loader would give them if it had given none before.

        They come from processes of their own, two at most, in turns; or from this one, whose data set they
        may change, if the loader has none. seed: of these processes. collate: in place of the loader's.
        """
        dataset, own = self.dataset, self.collate_fn
        assert isinstance(own, _CollateShare)
        if isinstance(dataset, SeededSamples):
            dataset = SeededSamples(dataset.dataset, dataset.seed)
        loader = DataLoader(
            dataset,
            batch_sampler=shares,
            collate_fn=_CollateShare(collate or own.collate, dataset),
            generator=torch.Generator().manual_seed(seed),
            num_workers=min(self.num_workers, 2),
            worker_init_fn=self.worker_init_fn,
            multiprocessing_context=self.multiprocessing_context,
        )
        return list(loader)

    def samples(self, number: int) -> int:
        """Returns how many samples this rank's share of a micro-batch of the running epoch has."""
        return self._kept.get(number, self.batch_sampler.share(number))

    def samples_of_batch(self, number: int) -> int:
        """Returns the number of samples of a micro-batch, over all ranks."""
        return self.batch_sampler.count(number, number + 1)

    def samples_of_step(self, number: int, micro_batches: int) -> int:
        """Returns the number of samples of an optimizer step of `micro_batches`, over all ranks."""
        first = number - number % micro_batches
        return self.batch_sampler.count(first, first + micro_batches)

    def position(self, number: int) -> Position:
        """Returns where this rank's samples of a micro-batch are."""
        return self.batch_sampler.position(number)

    def is_placeholder(self, number: int) -> bool:
        """Returns whether a `Placeholder` stood in for an empty share of the running epoch."""
        return number in self._placeholders

    def state_dict(self) -> dict[str, int]:
        epoch, batch = self._taken or (self.batch_sampler.epoch, self.batch_sampler.first)
        return {"epoch": epoch, "batch": batch}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.batch_sampler.start_at(state["epoch"], state["batch"], state.get("cycle", 0))


class _CollateShare:
    """A collate function that also makes batches for empty shares."""

    def __init__(self, collate: Callable[[list[Any]], Any], dataset: Dataset[Any]) -> None:
        self.collate, self.dataset = collate, dataset
        self._seeded = SeededCollate(collate)

    def __call__(self, samples: list[Any]) -> Any:
        if isinstance(samples, SamplesInParts):
            parts = zip(samples, samples.origins, strict=True)
            return ShardedBatch([self._shard(part, origin) for part, origin in parts])
        return self._collated(samples)

    def _shard(self, part: list[Any], origin: bytes) -> Shard:
        batch = self._seeded(self._collated, part, origin)
        return shard_of(batch, len(part), seeds_of(origin + b"transfer").own)

    def _collated(self, samples: list[Any]) -> Any:
        if samples:
            return collated(self.collate, samples)
        sample = samples.sample if isinstance(samples, EmptyShare) else self.dataset[0]
        return empty_batch(self.collate([sample]), self.collate([sample, sample]))


def share_loader(
    loader: DataLoader[Any],
    *,
    batch_size: int,
    rank: int,
    world_size: int,
    seed: int,
    drop_last: bool = False,
    accumulate_grad_batches: int = 1,
    repeats: bool = False,
    shards: Shards | None = None,
) -> ShareLoader | StreamLoader:
    """Returns a loader like `loader` that yields this rank's share of each global batch. Collective.

    batch_size: of the global batch, over all ranks. Dataset, collation, processes and order are those of
    `loader`; its batch size is ignored, unless it has a batch sampler of its own, whose lists are the global
    batches. drop_last: in addition to that of `loader`. repeats, shards: see `GlobalBatches`; with shards a
    batch is a `ShardedBatch`. Random draws of the dataset depend only on (seed, epoch, index), see
    `training.loading.sample_rng`; those of a stream on (seed, epoch), see `training.loading.streams`. Raises
    BuildError for data that cannot be cut into global batches.
    """
    assert accumulate_grad_batches <= batch_size
    _check_can_be_cut(loader, shards)
    drop_last |= has_plain_batches(loader) and bool(getattr(loader.batch_sampler, "drop_last", False))
    if isinstance(loader.dataset, IterableDataset):
        return StreamLoader(
            loader,
            batch_size=batch_size,
            rank=rank,
            world_size=world_size,
            seed=seed,
            drop_last=drop_last,
            accumulate_grad_batches=accumulate_grad_batches,
        )
    batches = GlobalBatches(
        _orders(loader, batch_size, seed, drop_last=drop_last, micro_batches=accumulate_grad_batches),
        rank=rank,
        world_size=world_size,
        accumulate_grad_batches=accumulate_grad_batches,
        shards=shards,
    )
    batches.repeats = repeats
    dataset = loader.dataset
    # A TensorDataset draws nothing.
    if shards or type(dataset) is not TensorDataset or isinstance(batches.orders, SamplerOrders):
        dataset = SeededSamples(dataset, seed)
    made = ShareLoader(
        dataset,
        batch_sampler=batches,
        collate_fn=_CollateShare(loader.collate_fn, dataset),
        # A separate generator, so that starting an iterator does not change the model's random numbers.
        generator=torch.Generator().manual_seed(seed),
        num_workers=loader.num_workers,
        pin_memory=loader.pin_memory,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        persistent_workers=loader.persistent_workers,
        prefetch_factor=loader.prefetch_factor,
    )
    made.size_by_user = loader.batch_size
    return made


def _check_can_be_cut(loader: DataLoader[Any], shards: Shards | None) -> None:
    """Raises BuildError for data that cannot be cut into global batches, or into shards if there are any."""
    if loader.batch_size is None and loader.batch_sampler is None:
        raise BuildError(
            "data.class_path",
            "its loader has batch_size=None, so each item is a batch of its own size; return a DataLoader "
            "over single samples, or set training.sampler to own",
        )
    if type(loader).__iter__ is not DataLoader.__iter__:
        raise BuildError(
            "data.class_path",
            f"its loader, a {type(loader).__name__}, has an __iter__ of its own, which would not be called "
            "for the shares of a batch; do that in the data set or the collate_fn, or set training.sampler "
            "to own",
        )
    if shards is not None and isinstance(loader.dataset, IterableDataset):
        raise BuildError(
            "data.class_path",
            "its data set is a stream, which training.reproducible: bits does not cut into shards; give "
            "the data set a length and __getitem__, or set training.reproducible to curve",
        )


def _orders(
    loader: DataLoader[Any], batch_size: int, seed: int, *, drop_last: bool, micro_batches: int
) -> Orders:
    dataset = loader.dataset
    has_default_order = has_plain_batches(loader) and getattr(sampler_of(loader), "data_source", 0) is dataset
    if has_default_order and not isinstance(dataset, Sized):
        raise BuildError(
            "data.class_path",
            f"{type(dataset).__name__} has no length; give it a __len__, give its loader a sampler, or make "
            "it an IterableDataset",
        )
    samples = len(dataset) if isinstance(dataset, Sized) else 0
    shuffle = is_shuffled(loader, samples)
    if shuffle is None:
        return SamplerOrders(
            loader, batch_size=batch_size, seed=seed, drop_last=drop_last, micro_batches=micro_batches
        )
    if samples == 0 or (drop_last and samples < batch_size):
        raise BuildError("data", f"the data set has {samples} samples, too few for a batch of {batch_size}")
    return SeededOrders(samples, batch_size=batch_size, shuffle=shuffle, seed=seed, drop_last=drop_last)
