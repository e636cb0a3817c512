"""Random draws of a data set that depend only on (seed, epoch, sample index).

Augmentation is then the same on any rank, in any process of the loader, and in a resumed run. If an index
occurs several times in an epoch, each occurrence has draws of its own.
"""

from __future__ import annotations

import operator
import struct
from collections.abc import Callable, Hashable, Iterator, Sequence, Sized
from contextlib import contextmanager
from itertools import islice
from typing import Any, cast

import torch
from torch.utils.data import Dataset

from training.loading.generators import restored_generators, seed_globally, seeds_of
from training.loading.private_generators import PrivateGenerators


class Indices(list[Any]):
    """Indices of samples with what the loader's processes need to know about them.

    occurrences: how often each index came up earlier in the epoch; None if no index did. stand_in: an index
    of which an empty share makes a batch without samples. parts: the lengths of consecutive parts that are
    to be collated each for itself; None: there is one.
    """

    def __init__(
        self,
        indices: Sequence[Any] = (),
        *,
        epoch: int = 0,
        occurrences: Sequence[int] | None = None,
        stand_in: Any = None,
        parts: Sequence[int] | None = None,
    ) -> None:
        super().__init__(indices)
        self.epoch, self.occurrences, self.stand_in, self.parts = epoch, occurrences, stand_in, parts


class EmptyShare(list[Any]):
    """No samples, and one sample that shows what they would look like."""

    def __init__(self, sample: Any) -> None:
        super().__init__()
        self.sample = sample


class SamplesInParts(list[Any]):
    """The samples of several parts, as a list for each.

    origins: what is drawn while each is collated depends on.
    """

    def __init__(self, parts: Sequence[list[Any]], origins: Sequence[bytes]) -> None:
        super().__init__(parts)
        self.origins = origins


class SeededCollate:
    """Collates samples with all generators seeded, those of `collate` among them; then puts them back."""

    def __init__(self, collate: Callable[[list[Any]], Any]) -> None:
        self._private = PrivateGenerators(collate)

    def __call__(self, collate: Callable[[list[Any]], Any], samples: list[Any], origin: bytes) -> Any:
        """Returns collate(samples). collate: what calls the function whose generators were found."""
        is_first = self._private.is_new_here
        if is_first:
            self._private.search()
        with _restored_generators(), self._private.restored():
            batch = self._seeded(collate, samples, origin)
            if is_first and self._private.search():  # created by the first batch, so not seeded yet
                batch = self._seeded(collate, samples, origin)
            return batch

    def _seeded(self, collate: Callable[[list[Any]], Any], samples: list[Any], origin: bytes) -> Any:
        _seed(origin)
        self._private.seed(origin)
        return collate(samples)


class SeededSamples(Dataset[Any]):
    """Wraps `dataset` to reseed the generators of torch, NumPy and Python before each sample.

    These are the global ones and those of the data set's own, see `training.loading.private_generators`.
    Afterwards the generators' states are restored, so that the model's random numbers do not depend on the
    data's. Samples are fetched one by one, even if the data set has `__getitems__`. If a process's first
    batch creates generators, it is fetched again. What a collate function draws is covered where it
    collates parts: `SeededCollate`. Costs 15 µs per sample and 0.2 ms per batch, and 3 to 20 µs and 0.1 ms
    for each generator of the data set's own.
    """

    def __init__(self, dataset: Dataset[Any], seed: int) -> None:
        self.dataset, self.seed = dataset, seed
        self._private = PrivateGenerators(dataset)

    def __len__(self) -> int:
        return len(cast(Sized, self.dataset))

    def __getitem__(self, index: Any) -> Any:
        """Returns the sample as drawn in epoch 0."""
        return self.__getitems__(Indices([index]))[0]

    def __getitems__(self, indices: Indices) -> list[Any]:
        """Returns the samples, or an `EmptyShare` if there are none."""
        is_first = self._private.is_new_here
        if is_first:
            self._private.search()
        with _restored_generators(), self._private.restored():
            samples = self._share(indices)
            if is_first and self._private.search():  # created by the first samples, so not seeded yet
                samples = self._share(indices)
            return samples

    def __setattr__(self, name: str, value: Any) -> None:
        """Sets an attribute of the data set: a `worker_init_fn` does so through `get_worker_info()`."""
        if name in ("dataset", "seed", "_private"):
            super().__setattr__(name, value)
        else:
            setattr(self.dataset, name, value)

    def _share(self, indices: Indices) -> list[Any]:
        occurrences = indices.occurrences or [0] * len(indices)
        if not indices and indices.parts is None:
            return self._empty(indices)
        samples = [self._draw(indices.epoch, *which) for which in zip(indices, occurrences, strict=True)]
        if indices.parts is None:
            return samples
        rest, first = iter(samples), 0
        parts, origins = [], []
        for length in indices.parts:
            which = (indices[first], occurrences[first]) if length else (indices.stand_in, 0)
            origins.append(_origin(self.seed, indices.epoch, *which) + b"collate")
            parts.append(list(islice(rest, length)) if length else self._empty(indices))
            first += length
        return SamplesInParts(parts, origins)

    def _empty(self, indices: Indices) -> EmptyShare:
        return EmptyShare(self._draw(indices.epoch, indices.stand_in, 0))

    def __getattr__(self, name: str) -> Any:
        if name == "dataset":  # not set yet while a copy is being made
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def _draw(self, epoch: int, index: Any, occurrence: int) -> Any:
        origin = _origin(self.seed, epoch, index, occurrence)
        _seed(origin)
        self._private.seed(origin)
        # Like torch's loader, prefer `__getitems__` if the data set has it.
        getitems = getattr(self.dataset, "__getitems__", None)
        return getitems([index])[0] if getitems else cast(Any, self.dataset)[index]


def sample_generator() -> torch.Generator:
    """Returns the current sample's generator, seeded by (seed, epoch, index). Call it in `__getitem__`.

    All calls within a sample return the same object, so draws continue. Outside a loader of this project (in
    a notebook or test), it returns a new generator seeded from torch's global one.
    """
    return _Current.generator()


def identity(index: Any) -> Hashable:
    """Returns what says whether two indices are the same: an int, or the text of any other object."""
    try:
        number = operator.index(index)
    except (TypeError, ValueError):  # ValueError: an array of one number
        return repr(index)
    return number if -(2**63) <= number < 2**63 else repr(number)


class _Current:
    """The seed and generator of the sample that this process is fetching; None between samples."""

    seed: int | None = None
    cached_generator: torch.Generator | None = None

    @classmethod
    def generator(cls) -> torch.Generator:
        if cls.seed is None:
            return torch.Generator().manual_seed(int(torch.randint(2**62, ())))
        if cls.cached_generator is None:
            cls.cached_generator = torch.Generator().manual_seed(cls.seed)
        return cls.cached_generator


def _origin(seed: int, epoch: int, index: Any, occurrence: int) -> bytes:
    which = identity(index)
    origin = struct.pack("<QQ", seed, epoch)
    origin += struct.pack("<q", which) if isinstance(which, int) else str(which).encode()
    if occurrence:
        origin += struct.pack("<Q", occurrence)
    return origin


def _seed(origin: bytes) -> None:
    seeds = seeds_of(origin)
    seed_globally(seeds)
    _Current.seed, _Current.cached_generator = seeds.own, None


@contextmanager
def _restored_generators() -> Iterator[None]:
    with restored_generators():
        try:
            yield
        finally:
            _Current.seed = _Current.cached_generator = None
