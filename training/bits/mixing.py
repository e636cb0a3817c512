"""Whether a loss is a mean over samples: one of pairs, or over a mask, is computed within each shard alone.

Such a loss is the same on any number of workers, but not that of the whole batch. It shows in a shard that is
cut in two: the loss of the shard is not the mean of those of its halves, weighted by their samples. Layers
that see the whole batch see both halves.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from training.loading.sharded import Shard

ROUNDING, ROUNDING_OF_HALF = 1e-3, 2e-2
"""Relative differences of losses that are not told from rounding; bfloat16 rounds to 4e-3."""

_MESSAGE = (
    "the loss is not a mean over samples: it is {whole:.4g} for the {samples} samples of a shard, and "
    "{halves:.4g} as the mean of its two halves. training.reproducible: bits computes it within each of "
    "{{shards}} shards of a batch, not over the whole batch. Use sync_bn.global_mean for a sum or a mean "
    "over a mask. Pairs of samples are those of a shard: for more of them choose a larger batch or fewer "
    "training.shards"
)


class _NotCut(Exception):
    """It is not known which of a batch belongs to which sample."""


def mixing(
    shards: Sequence[Shard], loss_of: Callable[[Sequence[Shard], int], float | None], rounding: float
) -> str:
    """Returns a message, with a field for the number of shards, if the loss is no mean over samples; or "".

    loss_of: computes the mean loss of shards. What it draws is a function of its second argument, a number.
    Says nothing of a batch that cannot be cut, of a loss that is drawn, or where there is none.
    """

    def differ(one: float | None, other: float | None) -> bool:
        return one is not None and other is not None and not math.isclose(one, other, rel_tol=rounding)

    for shard in shards:
        try:
            halves = _halves(shard)
            if not differ(whole := loss_of([shard], 0), of_halves := loss_of(halves, 0)):
                continue
            if differ(whole, loss_of([shard], 1)):
                return ""
        except Exception:  # the halves are too small for the model, or it fails as it will in the step
            continue
        return _MESSAGE.format(whole=whole, halves=of_halves, samples=shard.samples)
    return ""


def _halves(shard: Shard) -> list[Shard]:
    if shard.samples < 2 or shard.stands_in:
        raise _NotCut
    middle = shard.samples // 2
    parts = (slice(middle), middle), (slice(middle, None), shard.samples - middle)
    return [Shard(_cut(shard.batch, shard.samples, part), number) for part, number in parts]


def _cut(batch: Any, samples: int, part: slice) -> Any:
    """Returns these samples of a batch. Raises _NotCut if it can be read in two ways, or in none."""
    if isinstance(batch, Tensor):
        if batch.ndim and len(batch) == samples:
            return batch[part]
        raise _NotCut
    if type(batch) is dict:
        return {key: _cut(value, samples, part) for key, value in batch.items()}
    if type(batch) not in (list, tuple):
        raise _NotCut
    if not batch or (isinstance(batch[0], str | Mapping) and len(batch) == samples):
        return batch[part]
    if len(batch) == samples:  # one entry a sample, or as many fields as there are samples
        raise _NotCut
    return type(batch)(_cut(value, samples, part) for value in batch)
