"""Several loaders to train on, whose batches a step gets together (Lightning's CombinedLoader).

The weight of a rank's loss is its share of the samples. With several loaders it is right if the rank has the
same share of each loader's batch, which is checked before training.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from training.errors import BuildError
from training.loading.batches import ShareLoader
from training.spec import shares


def given_in_batch(loaders: Sequence[Any], mode: str, number: int) -> list[tuple[Any, int]]:
    """Returns the loaders that have a part in a batch of the epoch, each with the number of its own batch.

    mode: of the CombinedLoader. number: of the batch, from 0.
    """
    if len(loaders) == 1:
        return [(loaders[0], number)]
    if mode == "max_size_cycle":
        return [(loader, number % len(loader)) for loader in loaders]
    return [(loader, number) for loader in loaders if number < len(loader)]


def check_combined(loaders: Sequence[Any], mode: str, *, batches: int, world_size: int) -> None:
    """Raises BuildError unless every rank has the same share of each loader's batch, in every step."""
    if len(loaders) == 1:
        return
    remedy = "return one loader, over a data set that yields a sample of each"
    if not all(isinstance(loader, ShareLoader) for loader in loaders):
        raise BuildError(
            "data.class_path", f"several loaders to train on need data sets with a length; {remedy}"
        )
    sizes = sorted({loader.size_by_user or 0 for loader in loaders})
    if len(sizes) > 1:
        raise BuildError(
            "data.class_path",
            f"its loaders to train on have batches of {' and '.join(map(str, sizes))} samples, but "
            "training.global_batch_size is one number for all of them; give them one batch_size, or "
            f"{remedy}",
        )
    if loaders[0].batch_sampler.accumulate_grad_batches > 1:
        raise BuildError(
            "training.accumulate_grad_batches",
            f"must be 1 with several loaders to train on; set it to 1, or {remedy}",
        )
    for number in range(batches):
        parts = [
            loader.batch_sampler.count(own, own + 1) for loader, own in given_in_batch(loaders, mode, number)
        ]
        fractions = {tuple(size / part for size in shares(part, world_size)) for part in parts}
        if len(fractions) > 1:
            raise BuildError(
                "data.class_path",
                f"batch {number} has {' and '.join(map(str, parts))} samples of its loaders to train on, "
                f"which {world_size} workers cannot share equally; choose a resources.workers that divides "
                f"them, set training.drop_last, or {remedy}",
            )


def states_at(loaders: Sequence[Any], mode: str, *, epoch: int, number: int) -> list[dict[str, int]]:
    """Returns what each loader's `load_state_dict` needs to go on at a batch of the epoch."""
    if len(loaders) == 1:
        return [{"epoch": epoch, "batch": number}]
    if mode == "max_size_cycle":
        cycles = [divmod(number, len(loader)) for loader in loaders]
        return [{"epoch": epoch, "batch": batch, "cycle": cycle} for cycle, batch in cycles]
    return [{"epoch": epoch, "batch": min(number, len(loader))} for loader in loaders]
