"""The order of a user's own sampler: drawn by rank 0, from seed and epoch, for all ranks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from copy import deepcopy
from itertools import pairwise
from typing import Any, cast

import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)
from torch.utils.data.distributed import DistributedSampler

from training.console import say
from training.errors import BuildError
from training.loading.generators import restored_generators, seed_globally, seeds_of_epoch
from training.loading.orders import Order, order_of_batches, order_of_samples
from training.loading.rank_zero import from_rank_zero, is_rank_zero
from training.loading.sample_rng import identity

_FOLLOWS_SEED = {
    BatchSampler,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
}
"""Samplers of torch, whose order follows from generators that are seeded here."""


class SamplerOrders:
    """Orders that a loader's own sampler gives, or its own batch sampler, whose lists are global batches.

    Rank 0 draws the order of an epoch after `set_epoch(epoch)`, where there is one, with the global
    generators and the torch generators of sampler and loader seeded by (seed, epoch). If the order depends on
    anything else, rank 0 says so once: a resumed run then takes another order, from the place where it
    stopped.
    """

    def __init__(
        self, loader: DataLoader[Any], *, batch_size: int, seed: int, drop_last: bool, micro_batches: int
    ) -> None:
        """micro_batches: of each global batch. Raises BuildError for a sampler that gives a rank's part."""
        self.batch_size, self.seed, self.drop_last = batch_size, seed, drop_last
        self.micro_batches = micro_batches
        self._own_batches = not has_plain_batches(loader)
        self._source = loader.batch_sampler if self._own_batches else sampler_of(loader)
        self._generator, self._dataset = loader.generator, loader.dataset
        self._said: set[str] = set()
        for part in _parts(self._source):
            if (getattr(part, "num_replicas", 1) or 1) != 1:
                raise BuildError(
                    "data.class_path",
                    f"its {type(part).__name__} gives each worker a part of the samples, but the samples of "
                    "each batch are shared among the workers here; construct it with num_replicas=1 and "
                    "rank=0, or set training.sampler to own",
                )

    @property
    def name(self) -> str:
        """The class of the sampler."""
        return type(self._source).__name__

    def of(self, epoch: int) -> Order:
        """Returns the order of an epoch. Collective. Raises BuildError for an order that cannot be used."""
        drawn = from_rank_zero(lambda: self._draw_and_check(epoch))
        if not self._own_batches:
            order = order_of_samples(drawn, self.batch_size, drop_last=self.drop_last)
        else:
            order = order_of_batches(drawn)
            self._check_batches(order)
        if not order.ends:
            least = f"{self.batch_size}, the batch that drop_last keeps" if len(drawn) else "one"
            raise BuildError(
                "data.class_path",
                f"its sampler {self.name} gave {len(drawn)} samples in epoch {epoch}, fewer than {least}",
            )
        return order

    def _draw_and_check(self, epoch: int) -> list[Any]:
        drawn = self._draw(self._source, epoch)
        if "order" not in self._said and not self._follows_seed(drawn, epoch):
            say(
                f"warning: the order of {self.name} does not follow from seed and epoch alone: a repeated or "
                "resumed run sees another order. Let it draw from torch's, NumPy's or Python's global "
                "generator, or from seed and set_epoch(epoch)"
            )
        self._said.add("order")
        return drawn

    def _draw(self, source: Any, epoch: int) -> list[Any]:
        seeds = seeds_of_epoch("sampler", self.seed, epoch)
        with restored_generators():
            seed_globally(seeds)
            for part in _parts(source):
                if isinstance(generator := getattr(part, "generator", None), torch.Generator):
                    generator.manual_seed(seeds.own)
                if callable(set_epoch := getattr(part, "set_epoch", None)):
                    set_epoch(epoch)
            if self._generator is not None:
                self._generator.manual_seed(seeds.own)
            return [list(batch) for batch in source] if self._own_batches else list(source)

    def _follows_seed(self, drawn: list[Any], epoch: int) -> bool:
        """Returns whether a second draw is the same; True if that cannot be tried.

        A copy makes the second draw, so that the state of the user's sampler is that of one draw an epoch.
        """
        if all(type(part) in _FOLLOWS_SEED for part in _parts(self._source)):
            return True
        try:
            # The data set is not copied with its sampler: it may be large.
            copied = deepcopy(self._source, {id(data): data for data in _data_sets(self._dataset)})
            again = self._draw(copied, epoch)
        except Exception:  # a sampler need not be one that can be copied
            return True
        return _identities(again) == _identities(drawn)

    def _check_batches(self, order: Order) -> None:
        sizes = [end - begin for begin, end in pairwise([0, *order.ends])]
        if 0 in sizes:
            raise BuildError("data.class_path", f"{self.name} gave a batch without samples")
        if sizes and min(sizes[:-1], default=self.micro_batches) < self.micro_batches:
            raise BuildError(
                "training.accumulate_grad_batches",
                f"{self.name} gave a batch of {min(sizes)} samples, which cannot be cut into "
                f"{self.micro_batches} micro-batches; only the last batch of an epoch may be smaller",
            )
        other = next((size for size in sizes if size != self.batch_size), None)
        if other and "size" not in self._said and is_rank_zero():
            say(
                f"the batches of {self.name} are the global batches: one has {other} samples; "
                f"training.global_batch_size ({self.batch_size}) is not used for this loader"
            )
            self._said.add("size")


def has_plain_batches(loader: DataLoader[Any]) -> bool:
    """Returns whether the loader's batches are its samples in their order, of one size."""
    return loader.batch_sampler is None or type(loader.batch_sampler) is BatchSampler


def sampler_of(loader: DataLoader[Any]) -> Iterable[Any]:
    """Returns the sampler of single samples. That of a BatchSampler counts, if one was given."""
    batches = loader.batch_sampler
    return loader.sampler if batches is None else cast(BatchSampler, batches).sampler


def is_shuffled(loader: DataLoader[Any], samples: int) -> bool | None:
    """Returns whether the loader shuffles all samples of its data set; None if the order is its sampler's."""
    if not has_plain_batches(loader):
        return None
    sampler = sampler_of(loader)
    if type(sampler) is DistributedSampler:
        return sampler.shuffle
    if isinstance(sampler, SequentialSampler) and type(sampler).__iter__ is SequentialSampler.__iter__:
        return False if len(sampler.data_source) == samples else None
    if isinstance(sampler, RandomSampler) and type(sampler).__iter__ is RandomSampler.__iter__:
        whole = len(sampler.data_source) == sampler.num_samples == samples
        return True if whole and not sampler.replacement else None
    return None


def _parts(source: object) -> Iterator[Any]:
    """Yields a sampler and those that it wraps as `sampler` or `batch_sampler`."""
    seen: set[int] = set()
    while source is not None and id(source) not in seen:
        seen.add(id(source))
        yield source
        inner = getattr(source, "sampler", None)
        source = getattr(source, "batch_sampler", None) if inner is None else inner


def _data_sets(dataset: object) -> Iterator[object]:
    """Yields a data set and those that it wraps as `dataset`."""
    seen: set[int] = set()
    while dataset is not None and id(dataset) not in seen:
        seen.add(id(dataset))
        yield dataset
        dataset = getattr(dataset, "dataset", None)


def _identities(drawn: Sequence[Any]) -> list[Any]:
    return [_identities(entry) if isinstance(entry, list) else identity(entry) for entry in drawn]
