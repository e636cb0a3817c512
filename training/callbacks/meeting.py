"""An all-reduce in which ranks notice that they are not at the same place of a step.

A collective that ranks enter at different places adds up numbers that do not belong together, or waits for
ever. All messages of a step's losses have one length and hold a number for their place, so ranks that meet at
different places know it, at no cost.
"""

from __future__ import annotations

import zlib

import torch.distributed as dist
from torch import Tensor

from training.errors import StepError

LENGTH = 16
"""Of every message: two numbers for the place, and up to 14 others."""
_PLACES = 2**20  # so that the sum of the squares of 2**13 ranks' places is exact in float64


def meet(place: str, numbers: Tensor) -> Tensor:
    """Returns the sums of `numbers` over all ranks. Collective; waits for the device.

    numbers: (n,) float64; more than 14 are sent separately. place: describes the call, equal on all ranks.
    Raises StepError on every rank if the ranks are at different places; `numbers` is summed over none then.
    """
    fits = len(numbers) <= LENGTH - 2
    message = numbers.new_zeros(LENGTH)
    own = zlib.crc32(f"{place}, {len(numbers)} numbers".encode()) % _PLACES
    message[:2] = numbers.new_tensor([own, own**2])
    if fits:
        message[2 : 2 + len(numbers)] = numbers
    dist.all_reduce(message)  # every rank reaches it, or one of another place with the same length
    total, squares = message[:2].tolist()
    ranks = dist.get_world_size()
    # Equal on all ranks if and only if the variance is 0, which all ranks find alike.
    if total**2 != ranks * squares:
        _refuse(place)
    if fits:
        return message[2 : 2 + len(numbers)]
    sums = numbers.clone()
    dist.all_reduce(sums)  # every rank is here, with as many numbers
    return sums


def _refuse(place: str) -> None:
    places: list[str] = [""] * dist.get_world_size()
    dist.all_gather_object(places, place)  # every rank has found the difference
    by_place: dict[str, list[str]] = {}
    for rank, found in enumerate(places):
        by_place.setdefault(found, []).append(str(rank))
    which = "; ".join(f"rank {', '.join(ranks)}: {found}" for found, ranks in by_place.items())
    raise StepError(
        f"the workers are at different places of a step ({which}). Backward passes, calls of optimizers, "
        "sync_bn.global_mean, and cross_entropy and nll_loss with weight or ignore_index must be called on "
        "every worker, equally often and in the same order, whatever its share of the batch holds: one "
        "without a target has the mean of the others"
    )
