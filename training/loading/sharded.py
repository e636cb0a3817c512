"""A rank's batch in shards: one batch for each of its shards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from training.errors import StepError
from training.loading.dropped_samples import Kept
from training.loading.empty_shares import Placeholder


@dataclass  # not frozen: Lightning's precisions fill a copy with tensors of another dtype
class Shard:
    """The batch of one shard.

    samples: how many it has, without those that a `collate_fn` has dropped. stands_in: whether it has no
    sample, and the batch is a placeholder whose samples must not count. seed: of what is drawn for the batch
    before the step, on any worker.
    """

    batch: Any
    samples: int
    stands_in: bool = False
    seed: int = 0


@dataclass
class ShardedBatch:
    """The batches of a rank's shards, in their order. Lightning and its callbacks get it as the batch."""

    shards: Sequence[Shard]

    @property
    def first(self) -> Any:
        """The batch of the first shard that has samples, or of the first."""
        return next((shard for shard in self.shards if shard.samples), self.shards[0]).batch

    def __getitem__(self, _: Any) -> Any:
        raise StepError(
            "a callback reads a batch, which training.reproducible: bits has cut into shards; read it in the "
            "step, or that of one shard, batch.first, or set training.reproducible to curve"
        )

    def with_batches(self, batches: Sequence[Any]) -> ShardedBatch:
        """Returns the same shards with other batches."""
        pairs = zip(self.shards, batches, strict=True)
        return ShardedBatch([replace(shard, batch=batch) for shard, batch in pairs])

    def pin_memory(self) -> ShardedBatch:
        """Pins the memory of every shard's batch: called by torch's loader."""
        from torch.utils.data._utils.pin_memory import pin_memory

        return self.with_batches([pin_memory(shard.batch) for shard in self.shards])  # type: ignore[no-untyped-call]


def shard_of(collated: Any, samples: int, seed: int = 0) -> Shard:
    """Returns the shard for what the collation of its samples gave."""
    if isinstance(collated, Placeholder):
        return Shard(collated.batch, 0, stands_in=True, seed=seed)
    if isinstance(collated, Kept):
        return Shard(collated.batch, collated.samples, seed=seed)
    return Shard(collated, samples, seed=seed)
