"""The loaders that a rank uses, made from those of the user's DataModule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.distributed as dist
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader

from training.bits.shards import RankShards
from training.errors import BuildError
from training.loading.batches import share_loader
from training.loading.counted import length_of
from training.loading.samplers import has_plain_batches
from training.loading.user_loader import WARNING, user_loader
from training.rank.context import RankContext
from training.spec import Spec


class RankLoaders:
    """Makes this rank's loader of each loader that Lightning requests from the DataModule.

    trainer: set before fitting. say: prints a warning for the user on rank 0. shards: of this rank, if it
    trains shard by shard.
    """

    def __init__(
        self, spec: Spec, context: RankContext, say: Callable[[str], None], shards: RankShards | None
    ) -> None:
        self._settings, self._say = spec.training, say
        self._shards = None if shards is None else shards.cuts
        self._rank, self._world_size = context.rank, context.world_size
        self.trainer: Trainer | None = None

    def share(self, loader: object) -> object:
        """Returns a loader of this rank's shares, or for `training.sampler: own` of the user's batches."""
        assert self.trainer is not None
        stage = self.trainer.state.stage
        assert stage is not None
        settings, trains = self._settings, bool(self.trainer.training)
        own = settings.sampler == "own"
        if own and trains:
            self._say(f"warning: {WARNING}")
            return user_loader(loader)
        try:
            return self._shared(loader, f"data.{stage.dataloader_prefix}_dataloader", trains=trains)
        except BuildError:
            if not own:
                raise
            return user_loader(loader)

    def _shared(self, loader: object, key: str, *, trains: bool) -> object:
        _check_length(loader, key)
        settings, checked = self._settings, _checked(loader, key)
        # With `loader_batches` a micro-batch is what the loader gives, so there is nothing to cut.
        cuts = trains and settings.loader_batches is None
        return share_loader(
            checked,
            batch_size=self._batch_size(checked, key, trains=trains),
            rank=self._rank,
            world_size=self._world_size,
            seed=settings.seed,
            drop_last=settings.drop_last and trains,
            accumulate_grad_batches=settings.accumulate_grad_batches if cuts else 1,
            shards=self._shards,
            repeats=trains,  # a short loader beside a longer one starts again within the epoch
        )

    def _batch_size(self, loader: DataLoader[Any], key: str, *, trains: bool) -> int:
        """Returns the number of samples to cut. Raises BuildError if there are more workers."""
        settings = self._settings
        if not trains and settings.eval_batch_size is not None:
            return settings.eval_batch_size
        if settings.loader_batches is None:
            assert settings.global_batch_size is not None
            return settings.global_batch_size
        size = (loader.batch_size or 1) * settings.loader_batches
        if trains and has_plain_batches(loader) and size < self._world_size:
            raise BuildError(
                key,
                f"its batches of {loader.batch_size} samples, {settings.loader_batches} at a time, cannot be "
                f"shared by {self._world_size} workers; set resources.workers to at most {size}, or "
                "training.global_batch_size",
            )
        return size


def _check_length(loader: object, key: str) -> None:
    """Raises BuildError on every rank if the data set has another length on some rank. Collective."""
    lengths: list[int | None] = [None] * dist.get_world_size()
    dist.all_gather_object(lengths, length_of(getattr(loader, "dataset", None)))
    if len(set(lengths)) > 1:
        raise BuildError(
            key,
            f"its data set has {lengths} samples on the workers; give every worker the whole of it, and "
            "not a part by its rank, because each batch is shared among the workers here",
        )


def _checked(loader: object, key: str) -> DataLoader[Any]:
    if not isinstance(loader, DataLoader):
        raise BuildError(
            key,
            f"a {type(loader).__name__} cannot be shared among the workers; return a torch DataLoader over "
            "single samples, or set training.sampler to own",
        )
    return loader
