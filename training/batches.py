"""Global batches and the share that each rank takes.

The order of samples is a function of (seed, epoch) alone and a batch is cut in order, so the samples of a
step are the same whatever the number of ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence, Sized
from typing import Any, cast

import numpy as np
import torch
from torch.utils._pytree import tree_map
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
)

from training.failures import BuildError
from training.spec import shares


class GlobalBatches(Sampler[list[int]]):
    """This rank's share of each global batch, as lists of sample indices; a share may be empty."""

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
    ) -> None:
        self.samples, self.batch_size, self.rank, self.world_size = samples, batch_size, rank, world_size
        self.shuffle, self.seed, self.drop_last = shuffle, seed, drop_last
        self.epoch = 0

    @property
    def sampler(self) -> GlobalBatches:
        """Lightning looks here for the object whose `set_epoch` it calls before each epoch."""
        return self

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        whole, rest = divmod(self.samples, self.batch_size)
        return whole + (rest > 0 and not self.drop_last)

    def __iter__(self) -> Iterator[list[int]]:
        order = self._order()
        for step in range(len(self)):
            batch = order[step * self.batch_size : (step + 1) * self.batch_size]
            sizes = shares(len(batch), self.world_size)
            start = sum(sizes[: self.rank])
            yield batch[start : start + sizes[self.rank]]

    def _order(self) -> list[int]:
        if not self.shuffle:
            return list(range(self.samples))
        # Not torch's generator: it takes 32 bits of a seed, which is no room for a seed and an epoch.
        generator = np.random.default_rng((self.seed, self.epoch))
        return cast(list[int], generator.permutation(self.samples).tolist())


class _CollateShare:
    """A collate function that can make a batch of no samples: one of the right shape, cut to nothing."""

    def __init__(self, collate: Callable[[list[Any]], Any], dataset: Dataset[Any]) -> None:
        self.collate, self.dataset = collate, dataset

    def __call__(self, samples: list[Any]) -> Any:
        if samples:
            return self.collate(samples)
        return tree_map(_emptied, self.collate([self.dataset[0]]))


def _emptied(leaf: object) -> object:
    return leaf[:0] if isinstance(leaf, torch.Tensor) and leaf.ndim else leaf


def share_loader(
    loader: DataLoader[Any],
    *,
    batch_size: int,
    rank: int,
    world_size: int,
    seed: int,
    drop_last: bool = False,
) -> DataLoader[Any]:
    """A loader like `loader` (its dataset, collation, processes) that gives this rank's share of each batch.

    Whether samples are shuffled is taken from `loader`; its batch size is not: the spec's is global.
    Raises BuildError for data that cannot be cut into global batches.
    """
    dataset = loader.dataset
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
        raise BuildError(
            "data.class_path",
            f"{type(dataset).__name__} has no length or no index, so it cannot be cut into global batches "
            "that are the same for any number of workers; give a map-style Dataset",
        )
    if loader.batch_size is None and loader.batch_sampler is None:
        raise BuildError(
            "data.class_path",
            "its loader has batch_size=None, so each item is a batch of a size of its own; return a "
            "DataLoader over single samples",
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
    )
    return DataLoader(
        dataset,
        batch_sampler=batches,
        collate_fn=_CollateShare(loader.collate_fn, dataset),
        num_workers=loader.num_workers,
        pin_memory=loader.pin_memory,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        persistent_workers=loader.persistent_workers,
        prefetch_factor=loader.prefetch_factor,
    )


def _is_shuffled(loader: DataLoader[Any]) -> bool:
    """Whether the loader draws at random. A sampler with an order of its own cannot be shared: refused."""
    sampler = loader.sampler
    plain_batches = loader.batch_sampler is None or type(loader.batch_sampler) is BatchSampler
    if plain_batches and isinstance(sampler, RandomSampler) and not sampler.replacement:
        return True
    if plain_batches and isinstance(sampler, SequentialSampler):
        return False
    own = sampler if plain_batches else loader.batch_sampler
    raise BuildError(
        "data.class_path",
        f"its loader has a sampler of its own ({type(own).__name__}), whose order would depend on the number "
        "of workers; return a DataLoader with shuffle=True or shuffle=False",
    )


def loaders_of(loaders: object, key: str) -> list[DataLoader[Any]]:
    """What a DataModule's *_dataloader returned, as a list. Raises BuildError for anything else."""
    found: Sequence[object] = loaders if isinstance(loaders, list | tuple) else [loaders]
    for loader in found:
        if not isinstance(loader, DataLoader):
            raise BuildError(key, f"expected a torch DataLoader, got {type(loader).__name__}")
    return cast(list[DataLoader[Any]], list(found))
