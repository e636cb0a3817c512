"""Loaders of the user's own, taken as they are (`training.sampler: own`)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch.distributed as dist
from torch.utils.data import DataLoader

from training.errors import BuildError

WARNING = (
    "training.sampler is own: each worker trains on what its own loader gives it, so the result depends on "
    "the number of workers. A resumed run draws and drops the batches that were done in its epoch: these are "
    "the same ones only if the loader's order follows from set_epoch(epoch), as a DistributedSampler's does."
)


class UserLoader:
    """Gives the batches of `loader`, from a batch on if it is told to; Lightning takes it for a loader.

    Nothing is drawn before the first batch is asked for, when the epoch is known. `state_dict` is saved and
    loaded by Lightning; it says how many batches of which epoch were taken.
    """

    def __init__(self, loader: DataLoader[Any]) -> None:
        self.loader = loader
        self.epoch = 0
        self._start = (0, 0)
        self._taken = (0, 0)

    @property
    def sampler(self) -> UserLoader:
        """Lightning looks here for the object whose `set_epoch` it calls before each epoch."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Tells the loader's samplers, those of them that want to know."""
        self.epoch = epoch
        batches = self.loader.batch_sampler
        for sampler in (self.loader.sampler, batches, getattr(batches, "sampler", None)):
            if callable(tell := getattr(sampler, "set_epoch", None)):
                tell(epoch)

    def start_at(self, epoch: int, batch: int) -> None:
        """This epoch goes on after its first `batch` batches, which are drawn and dropped; once."""
        self.set_epoch(epoch)
        self._start = self._taken = (epoch, batch)

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        epoch, first = self._start
        first = first if epoch == self.epoch else 0
        self._start = (0, 0)  # once
        epoch = self.epoch
        for number, batch in enumerate(self.loader):
            if number >= first:
                self._taken = (epoch, number + 1)
                yield batch

    def state_dict(self) -> dict[str, int]:
        epoch, batch = self._taken
        return {"epoch": epoch, "batch": batch}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.start_at(state["epoch"], state["batch"])


def own_loader(loader: DataLoader[Any]) -> UserLoader:
    """The loader as it is. Every rank calls it, where there are several.

    Raises BuildError where training could not be done: an epoch without a known number of batches, or of
    another number on another rank, which would wait for the others for ever.
    """
    length = _length(loader)
    lengths = [length]
    if dist.is_initialized():
        lengths = [0] * dist.get_world_size()
        dist.all_gather_object(lengths, length)  # every rank gets here, whatever its length
    for problem, wrong in (
        ("has no length; give its data set or its sampler a __len__", None in lengths),
        ("has no batches", 0 in lengths),
        (
            f"gives the workers {lengths} batches in an epoch, and those with fewer would be waited for; "
            "give all the same number",
            len(set(lengths)) > 1,
        ),
    ):
        if wrong:
            raise BuildError("data.class_path", f"with training.sampler: own, its loader {problem}")
    return UserLoader(loader)


def _length(loader: DataLoader[Any]) -> int | None:
    try:
        return len(loader)
    except (TypeError, NotImplementedError):
        return None
