"""Global batches, and the share of each that a rank takes.

The order of samples depends only on (seed, epoch). Each global batch is cut in order into micro-batches, and
each micro-batch into shares, so a step has the same samples for any world size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sized
from typing import Any, cast

import numpy as np
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    TensorDataset,
)
from torch.utils.data.distributed import DistributedSampler

from training.errors import BuildError
from training.loading.empty_shares import Placeholder, empty_batch
from training.loading.sample_rng import Indices, SeededSamples
from training.spec import shares


class GlobalBatches(Sampler[list[int]]):
    """Yields this rank's share of each micro-batch, as `Indices` of samples; a share may be empty.

    A global batch has `accumulate_grad_batches` micro-batches, or one per sample if it has fewer samples.
    Only the last batch of an epoch may be short. The index of each batch's first micro-batch is therefore a
    multiple of `accumulate_grad_batches`, as Lightning expects.
    """

    def __init__(
        self,
        samples: int,
        *,
        batch_size: int,
        rank: int,
        world_size: int,
        shuffle: bool,
        seed: int = 0,
        drop_last: bool = False,
        accumulate_grad_batches: int = 1,
    ) -> None:
        assert accumulate_grad_batches <= batch_size
        self.samples, self.batch_size, self.rank, self.world_size = samples, batch_size, rank, world_size
        self.shuffle, self.seed, self.drop_last = shuffle, seed, drop_last
        self.accumulate_grad_batches = accumulate_grad_batches
        self.epoch = 0
        self._start = (0, 0)

    @property
    def sampler(self) -> GlobalBatches:
        """Lightning looks here for the object whose `set_epoch` it calls before each epoch."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch that the next iteration yields."""
        self.epoch = epoch

    def start_at(self, epoch: int, batch: int) -> None:
        """Makes the next iteration of `epoch` start at micro-batch `batch`, counted from 0; once only.

        If `batch` equals the length, the epoch yields nothing.
        """
        self.epoch, self._start = epoch, (epoch, batch)

    @property
    def first(self) -> int:
        """The micro-batch at which the next iteration starts."""
        epoch, batch = self._start
        return batch if epoch == self.epoch else 0

    def share(self, number: int) -> int:
        """Returns how many samples this rank's share of a micro-batch has."""
        return shares(self.count(number, number + 1), self.world_size)[self.rank]

    def count(self, start: int, stop: int) -> int:
        """Returns the number of samples in the micro-batches `start` to `stop - 1`, over all ranks."""
        return self._begin(stop) - self._begin(start)

    def __len__(self) -> int:
        whole, rest = divmod(self._drawn, self.batch_size)
        return whole * self.accumulate_grad_batches + min(rest, self.accumulate_grad_batches)

    def __iter__(self) -> Iterator[list[int]]:
        order, epoch, first = self._order(), self.epoch, self.first
        self._start = (0, 0)  # once
        for number in range(first, len(self)):
            batch = order[self._begin(number) : self._begin(number + 1)]
            sizes = shares(len(batch), self.world_size)
            start = sum(sizes[: self.rank])
            yield Indices(batch[start : start + sizes[self.rank]], epoch=epoch)

    @property
    def _drawn(self) -> int:
        """Number of samples used per epoch."""
        return self.samples - (self.samples % self.batch_size if self.drop_last else 0)

    def _begin(self, number: int) -> int:
        """Returns the position in the sample order at which a micro-batch begins; the end after the last."""
        step, part = divmod(number, self.accumulate_grad_batches)
        begin = min(step * self.batch_size, self._drawn)
        size = min(self.batch_size, self._drawn - begin)
        return begin + sum(shares(size, self.accumulate_grad_batches)[:part])

    def _order(self) -> list[int]:
        if not self.shuffle:
            return list(range(self.samples))
        # Not torch's generator: it uses 32 bits of its seed, too few for both a seed and an epoch.
        generator = np.random.default_rng((self.seed, self.epoch))
        return cast(list[int], generator.permutation(self.samples).tolist())


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

    def __iter__(self) -> Any:
        epoch, number = self.batch_sampler.epoch, self.batch_sampler.first
        self._placeholders = frozenset()
        for batch in super().__iter__():
            if isinstance(batch, Placeholder):
                self._placeholders |= {number}
            number += 1
            self._taken = (epoch, number)
            yield batch.batch if isinstance(batch, Placeholder) else batch

    def samples(self, number: int) -> int:
        """Returns how many samples this rank's share of a micro-batch of the running epoch has."""
        return self.batch_sampler.share(number)

    def is_placeholder(self, number: int) -> bool:
        """Returns whether a `Placeholder` stood in for an empty share of the running epoch."""
        return number in self._placeholders

    def state_dict(self) -> dict[str, int]:
        epoch, batch = self._taken or (self.batch_sampler.epoch, self.batch_sampler.first)
        return {"epoch": epoch, "batch": batch}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.batch_sampler.start_at(state["epoch"], state["batch"])


class _CollateShare:
    """A collate function that also makes batches for empty shares."""

    def __init__(self, collate: Callable[[list[Any]], Any], dataset: Dataset[Any]) -> None:
        self.collate, self.dataset = collate, dataset

    def __call__(self, samples: list[Any]) -> Any:
        if samples:
            return self.collate(samples)
        sample = self.dataset[0]
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
) -> ShareLoader:
    """Returns a loader like `loader` that yields this rank's share of each global batch.

    batch_size: of the global batch, over all ranks. Dataset, collation, processes and shuffling are those of
    `loader`; its batch size is ignored. Random draws of the dataset depend only on (seed, epoch, index), see
    `training.loading.sample_rng`. Raises BuildError for data that cannot be cut into global batches.
    """
    dataset = loader.dataset
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
        raise BuildError(
            "data.class_path",
            f"{type(dataset).__name__} has no length or no index, so it cannot be cut into global batches "
            "that are the same for any number of workers; use a map-style Dataset",
        )
    if loader.batch_size is None and loader.batch_sampler is None:
        raise BuildError(
            "data.class_path",
            "its loader has batch_size=None, so each item is a batch of its own size; return a DataLoader "
            "over single samples",
        )
    samples = len(cast(Sized, dataset))
    if samples == 0 or (drop_last and samples < batch_size):
        raise BuildError("data", f"the data set has {samples} samples, too few for a batch of {batch_size}")
    batches = GlobalBatches(
        samples,
        batch_size=batch_size,
        rank=rank,
        world_size=world_size,
        shuffle=_is_shuffled(loader),
        seed=seed,
        drop_last=drop_last,
        accumulate_grad_batches=accumulate_grad_batches,
    )
    if type(dataset) is not TensorDataset:  # a TensorDataset draws nothing
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


def _is_shuffled(loader: DataLoader[Any]) -> bool:
    """Returns whether the loader shuffles. Raises BuildError for a sampler with an order of its own."""
    sampler = loader.sampler
    plain_batches = loader.batch_sampler is None or type(loader.batch_sampler) is BatchSampler
    if plain_batches and isinstance(sampler, RandomSampler) and not sampler.replacement:
        return True
    if plain_batches and isinstance(sampler, SequentialSampler):
        return False
    if plain_batches and type(sampler) is DistributedSampler:
        return sampler.shuffle
    own = sampler if plain_batches else loader.batch_sampler
    raise BuildError(
        "data.class_path",
        f"its loader has a sampler of its own ({type(own).__name__}), whose order would depend on the number "
        "of workers; return a DataLoader with shuffle=True or shuffle=False, or set training.sampler to own "
        "and accept results that depend on the number of workers",
    )
