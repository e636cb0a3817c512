"""How ranks decide together, once a step, whether to save the run and whether to stop it."""

from __future__ import annotations

from enum import IntEnum


class Vote(IntEnum):
    GO_ON = 0
    SAVE = 1
    SAVE_AND_STOP = 2


class StopVote:
    """Shared by the callback that wants something and the one that asks all ranks (`GlobalLoss`).

    cast: sets this rank's vote, before the backward pass. decision: the highest vote of any rank, the same on
    all of them; it stands from the last micro-batch of a step until the next micro-batch.
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
        """How many ranks voted to save, and how many of these to stop as well."""
        self._decision = Vote.SAVE_AND_STOP if stop else Vote.SAVE if save else Vote.GO_ON
