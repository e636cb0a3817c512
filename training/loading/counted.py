"""How many samples a loader has: what callbacks ask of its batches, and the length of anything."""

from __future__ import annotations

from typing import NamedTuple, Protocol, runtime_checkable


class Position(NamedTuple):
    """Where this rank's samples of a micro-batch are.

    step: of the global batch, from 0 within the epoch. micro_batch: within the step. first: the position of
    the rank's first sample in the global batch, from 0.
    """

    step: int
    micro_batch: int
    first: int


@runtime_checkable
class CountedLoader(Protocol):
    """A loader of this rank's batches. Batches are numbered from 0 within the running epoch.

    A batch here is this rank's share of a micro-batch. Its answers hold for the running batch and the one
    that Lightning has fetched ahead.
    """

    def samples(self, number: int) -> int | None:
        """Returns how many samples a batch has on this rank; None if the loader cannot know.

        Without those that the `collate_fn` has dropped, which count below.
        """

    def samples_of_batch(self, number: int) -> int | None:
        """Returns how many samples the micro-batch has over all ranks. None if the loader cannot know."""

    def samples_of_step(self, number: int, micro_batches: int) -> int | None:
        """Returns how many samples the optimizer step with this batch has over all ranks and micro-batches.

        micro_batches: of a whole step; the last step of an epoch may have fewer. None if the loader cannot
        know.
        """

    def position(self, number: int) -> Position | None:
        """Returns where this rank's samples of a micro-batch are. None if the loader cannot know."""

    def is_placeholder(self, number: int) -> bool:
        """Returns whether a `Placeholder` stood in for an empty batch."""


def length_of(something: object) -> int | None:
    """Returns the length of a loader or a data set; None if it has none, as Lightning takes it."""
    try:
        return len(something)  # type: ignore[arg-type]
    except (TypeError, NotImplementedError):
        return None
