"""A user's own loader, used without cutting global batches (`training.sampler: own`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import copy
from typing import Any

import torch.distributed as dist
from torch.utils.data import DataLoader

from training.errors import BuildError
from training.loading.counted import length_of

WARNING = (
    "training.sampler is own: each worker trains on the batches of its own loader, so the result depends on "
    "the number of workers. A resumed run fetches and drops the batches that its epoch has already used. "
    "They are the same only if the loader's order follows from set_epoch(epoch), as in a DistributedSampler."
)


_SAMPLES_KEPT = 100  # batches: Lightning fetches one before it is needed


class _CollateAndCount:
    """A collate function that also returns the number of samples."""

    def __init__(self, collate: Callable[[list[Any]], Any]) -> None:
        self.collate = collate

    def __call__(self, samples: list[Any]) -> tuple[int, Any]:
        return len(samples), self.collate(samples)


def _can_count(loader: Any) -> bool:
    """Whether the loader collates samples, and no iterator of a class of its own works on the batches."""
    if not isinstance(loader, DataLoader):
        return False
    makes_batches = loader.batch_size is not None or loader.batch_sampler is not None
    return makes_batches and type(loader).__iter__ is DataLoader.__iter__


class UserLoader:
    """Yields the batches of `loader`, and can resume within an epoch; Lightning uses it as a loader.

    Nothing is fetched before the first batch is requested, when the epoch is known. Lightning saves and loads
    `state_dict`: the epoch, and the number of its batches that were taken.
    """

    def __init__(self, loader: Any) -> None:
        self.loader = copy(loader)  # the user may hold the same loader for another stage
        self._counts = _can_count(loader)
        if self._counts:
            self.loader.collate_fn = _CollateAndCount(loader.collate_fn)
        self._samples: dict[int, int] = {}
        self.epoch = 0
        self._start = (0, 0)
        self._taken = (0, 0)

    @property
    def sampler(self) -> UserLoader:
        """Lightning looks here for the object whose `set_epoch` it calls before each epoch."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch here and on all of the loader's samplers that have `set_epoch`."""
        self.epoch = epoch
        batches = getattr(self.loader, "batch_sampler", None)
        own = getattr(self.loader, "sampler", None)
        for sampler in (own, batches, getattr(batches, "sampler", None)):
            if callable(set_epoch := getattr(sampler, "set_epoch", None)):
                set_epoch(epoch)

    def start_at(self, epoch: int, batch: int) -> None:
        """Makes the next iteration of `epoch` fetch and drop its first `batch` batches; once only."""
        self.set_epoch(epoch)
        self._start = self._taken = (epoch, batch)

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        epoch, first = self._start
        first = first if epoch == self.epoch else 0
        self._start = (0, 0)  # once
        epoch = self.epoch
        self._samples = {}
        for number, batch in enumerate(self.loader):
            if self._counts:
                self._samples[number], batch = batch
                self._samples.pop(number - _SAMPLES_KEPT, None)
            if number >= first:
                self._taken = (epoch, number + 1)
                yield batch

    def samples(self, number: int) -> int | None:
        """Returns how many samples a batch of the running epoch has; None if only the loader knows."""
        return self._samples.get(number)

    def samples_of_batch(self, number: int) -> None:  # noqa: ARG002
        """Returns None: other workers may have batches of other sizes."""
        return

    def samples_of_step(self, number: int, micro_batches: int) -> None:  # noqa: ARG002
        """Returns None: other workers may have batches of other sizes."""
        return

    def position(self, number: int) -> None:  # noqa: ARG002
        """Returns None: other workers may have batches of other sizes."""
        return

    def is_placeholder(self, number: int) -> bool:  # noqa: ARG002
        """Returns False: no share is empty."""
        return False

    def state_dict(self) -> dict[str, int]:
        epoch, batch = self._taken
        return {"epoch": epoch, "batch": batch}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.start_at(state["epoch"], state["batch"])


def user_loader(loader: Any) -> UserLoader:
    """Wraps a user's own loader: a DataLoader, or any iterable of batches.

    Collective if there is a process group: every rank must call it.

    Raises BuildError if the number of batches per epoch is unknown, zero, or not the same on all ranks, which
    would make ranks wait for one another forever.
    """
    length = length_of(loader)
    lengths = [length]
    if dist.is_initialized():
        lengths = [0] * dist.get_world_size()
        dist.all_gather_object(lengths, length)  # every rank reaches this, whatever its length
    for problem, wrong in (
        (
            "has no length; give its data set or its sampler a __len__, or set training.sampler to global, "
            "which needs none",
            None in lengths,
        ),
        ("has no batches", 0 in lengths),
        (
            f"gives the workers {lengths} batches per epoch, so the workers with more would wait forever; "
            "give all workers the same number",
            len(set(lengths)) > 1,
        ),
    ):
        if wrong:
            raise BuildError("data.class_path", f"with training.sampler: own, its loader {problem}")
    return UserLoader(loader)
