"""Reads a user's stream in global batches, on rank 0."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset, IterDataPipe

from training.errors import BuildError
from training.loading.counted import length_of
from training.loading.generators import OwnGenerators, seeds_of_epoch
from training.loading.private_generators import PrivateGenerators


class StreamReader:
    """Reads the global batches of a stream, as the user's DataLoader would with their batch size.

    What the stream draws from the global generators, or from some of its own, follows from (seed, epoch), in
    this process and in those of the loader, which are started anew for each epoch. The stream's `set_epoch`
    is called if there is one. A stream with a length has at most that many samples in an epoch.
    """

    def __init__(
        self, loader: DataLoader[Any], *, batch_size: int, seed: int, drop_last: bool, micro_batches: int
    ) -> None:
        self.loader, self.batch_size, self.seed, self.drop_last = loader, batch_size, seed, drop_last
        self.micro_batches = micro_batches

    @property
    def samples(self) -> int | None:
        """The number of samples in an epoch, from the stream's `__len__`; None if it has none."""
        return length_of(self.loader.dataset)

    @property
    def length(self) -> int | None:
        """The number of micro-batches in an epoch; None if it is not known."""
        samples = self.samples
        if samples is None:
            return None
        whole, rest = divmod(samples, self.batch_size)
        return whole * self.micro_batches + (0 if self.drop_last else min(rest, self.micro_batches))

    def batches(self, epoch: int, *, skip: int) -> Iterator[list[Any]]:
        """Yields the samples of each global batch, after the first `skip`, which are read and dropped.

        Raises BuildError if the stream ends before its length, or gives a batch that cannot be cut.
        """
        yield from islice(self._checked(epoch), skip, None)

    def _checked(self, epoch: int) -> Iterator[list[Any]]:
        samples, length = self.samples, self.length
        taken, micro_batches, last = 0, 0, self.micro_batches
        for batch in self._read(epoch):
            if last < self.micro_batches:
                raise BuildError(
                    "training.accumulate_grad_batches",
                    f"the stream gave a batch of {last} samples before its last one, which cannot be cut "
                    f"into {self.micro_batches} micro-batches; use fewer, or at most one process in its "
                    "loader (num_workers), because each makes batches of its own",
                )
            whole = batch if samples is None else batch[: samples - taken]
            last = len(whole)
            taken, micro_batches = taken + last, micro_batches + min(last, self.micro_batches)
            yield whole
            if taken == samples or micro_batches == length:
                return
        self._check_end(epoch, taken, micro_batches)

    def _check_end(self, epoch: int, taken: int, micro_batches: int) -> None:
        if not taken:
            raise BuildError("data", f"the stream gave no batch of samples in epoch {epoch}")
        if self.length is not None and micro_batches < self.length:
            raise BuildError(
                "data.class_path",
                f"its stream says that it has {self.samples} samples, but gave {taken} in epoch {epoch}; "
                "correct its __len__, or remove it",
            )

    def _read(self, epoch: int) -> Iterator[list[Any]]:
        stream = self.loader.dataset
        if callable(set_epoch := getattr(stream, "set_epoch", None)):
            set_epoch(epoch)
        seeds = seeds_of_epoch("stream", self.seed, epoch)
        generators, private = OwnGenerators(seeds), PrivateGenerators(stream)
        private.search()
        private.seed(struct.pack("<Q", seeds.own))
        with generators:
            iterator = iter(self._loader(seeds.own))
        while True:
            with generators:
                batch = next(iterator, None)
            if batch is None:
                return
            yield batch

    def _loader(self, base_seed: int) -> DataLoader[Any]:
        loader, stream = self.loader, self.loader.dataset
        return DataLoader(
            _Iterated(stream) if isinstance(stream, IterDataPipe) else stream,
            batch_size=self.batch_size,
            drop_last=self.drop_last,
            collate_fn=list,  # each rank collates its own share
            generator=torch.Generator().manual_seed(base_seed),
            num_workers=loader.num_workers,
            timeout=loader.timeout,
            worker_init_fn=loader.worker_init_fn,
            multiprocessing_context=loader.multiprocessing_context,
            prefetch_factor=loader.prefetch_factor,
        )


class _Iterated(IterableDataset[Any]):
    """A data pipe as a plain stream: for a pipe, torch's loader would wait for the other ranks."""

    def __init__(self, pipe: IterDataPipe[Any]) -> None:
        self.pipe = pipe

    def __iter__(self) -> Iterator[Any]:
        return iter(self.pipe)
