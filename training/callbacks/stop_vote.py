"""The vote of all ranks, once per optimizer step, on whether to save the run and whether to stop it."""

from __future__ import annotations

from enum import IntEnum


class Vote(IntEnum):
    """One rank's vote; the highest vote wins."""

    GO_ON = 0
    SAVE = 1
    SAVE_AND_STOP = 2


class StopVote:
    """Passes votes from the callback that casts them to the one that counts them (`GlobalLoss`).

    own: this rank's vote, cast before the backward pass. decision: the highest vote of any rank, the same on
    all ranks; valid from the last micro-batch of a step until the next micro-batch.
    """

    def __init__(self) -> None:
        self._own = self._decision = Vote.GO_ON

    @property
    def own(self) -> Vote:
        return self._own

    @property
    def decision(self) -> Vote:
        return self._decision

    def cast(self, vote: Vote) -> None:
        self._own = vote

    def count(self, *, save: float, stop: float) -> None:
        """Sets the decision. save, stop: the numbers of ranks that voted to save, and also to stop."""
        self._decision = Vote.SAVE_AND_STOP if stop else Vote.SAVE if save else Vote.GO_ON
