"""Batches of a `collate_fn` that drops samples, such as those that could not be read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from training.errors import StepError

Collate = Callable[[list[Any]], Any]


@dataclass(frozen=True)
class Kept:
    """A batch with fewer samples than the `collate_fn` was given. samples: their number."""

    batch: Any
    samples: int

    def pin_memory(self) -> Kept:
        """Returns itself: called by torch's loader, for few batches."""
        return self


def collated(collate: Collate, samples: list[Any]) -> Any:
    """Returns `collate(samples)`, as `Kept` if samples were dropped. samples: a rank's share, at least one.

    Dropped samples are found by the lengths of the batch's tensors, so not in objects of the user's own
    classes. Raises StepError if the batch is None.
    """
    try:
        batch = collate(samples)
    except Exception as error:
        if _is_raised_for_nothing(error, collate):
            error.add_note(
                f"The collate_fn fails as it does without samples: it has dropped all {len(samples)} of this "
                "worker's share of the batch. Replace such samples in the data set by others, leave them out "
                "of it, or return tensors of length 0."
            )
        raise
    if batch is None:
        raise StepError(
            f"the collate_fn returned None for the {len(samples)} samples of a worker's share, while other "
            "workers may have a batch; replace such samples in the data set by others, leave them out of "
            "it, or return tensors of length 0"
        )
    length = _length(batch)
    if length is None or length >= len(samples):
        return batch
    return Kept(batch, length) if length == _number_kept(collate, samples) else batch


def _number_kept(collate: Collate, samples: list[Any]) -> int:
    """Returns how many samples are kept if each is collated alone: a length may mean another thing."""

    def is_kept(sample: Any) -> bool:
        try:
            return _length(collate([sample])) == 1
        except Exception:  # nothing is left to collate
            return False

    return sum(map(is_kept, samples))


def _is_raised_for_nothing(error: Exception, collate: Collate) -> bool:
    try:
        collate([])
    except Exception as other:
        return type(other) is type(error) and str(other) == str(error)
    return False


def _length(batch: Any) -> int | None:
    """Returns the length that all tensors of a batch have; None if there are several, or none."""
    lengths = {len(tensor) for tensor in _tensors(batch) if tensor.ndim}
    return lengths.pop() if len(lengths) == 1 else None


def _tensors(batch: Any) -> Iterator[Tensor]:
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, Mapping | list | tuple):
        for part in batch.values() if isinstance(batch, Mapping) else batch:
            yield from _tensors(part)
