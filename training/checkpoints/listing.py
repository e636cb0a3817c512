"""The checkpoints of a run as users see them, and which one a user means by best, last or a step. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from training.checkpoints.retention import Mode, best_of

LIGHTNING = "lightning.ckpt"
"""The file of a checkpoint that Lightning and torch alone can read."""
Which = Literal["best", "last"] | int
"""The name by which a user chooses a checkpoint. A number is its step."""


@dataclass(frozen=True, kw_only=True)
class Listed:
    """A checkpoint of a run.

    name: of its folder or upload. epoch: complete epochs; None if an earlier version saved it. saved_at:
    seconds since 1970; None as epoch. metric: of the monitored metric; None if it has none. files: the size
    in bytes and the SHA-256 of each by name. best, last: whether it is this one of its run.
    """

    name: str
    step: int
    epoch: int | None
    saved_at: float | None
    metric: float | None
    files: Mapping[str, Mapping[str, Any]]
    best: bool
    last: bool

    @property
    def bytes(self) -> int:
        """The size of all files."""
        return sum(file["size"] for file in self.files.values())


class NoSuchCheckpoint(Exception):
    """The run has no such checkpoint. The message names those that it has."""


def listed(newest_first: Mapping[str, Mapping[str, Any]], mode: Mode) -> list[Listed]:
    """Returns the checkpoints by step. newest_first: their manifests by name."""
    best = best_of({name: contents["metric"] for name, contents in newest_first.items()}, mode)
    last = next(iter(newest_first), None)
    return [
        Listed(
            name=name,
            step=contents["step"],
            epoch=contents.get("epoch"),
            saved_at=contents.get("saved_at"),
            metric=contents["metric"],
            files=contents["files"],
            best=name == best,
            last=name == last,
        )
        for name, contents in reversed(list(newest_first.items()))
    ]


def which_of(text: str) -> Which:
    """Returns what a user has written as a choice. Raises ValueError."""
    if text in ("best", "last"):
        return text  # type: ignore[return-value]
    if not (text.isascii() and text.isdigit()):
        raise ValueError(f"{text!r} is not a checkpoint; write best, last, or the number of a step")
    return int(text)


def chosen(checkpoints: Sequence[Listed], which: Which) -> Listed:
    """Returns the checkpoint that a user means. Raises NoSuchCheckpoint."""
    for each in checkpoints:
        if which == each.step or (which == "best" and each.best) or (which == "last" and each.last):
            return each
    if not checkpoints:
        raise NoSuchCheckpoint("it has no checkpoint")
    steps = ", ".join(str(each.step) for each in checkpoints)
    if which == "best":
        raise NoSuchCheckpoint(
            "none of its checkpoints is the best, because the metric of training.checkpoint.monitor was not "
            f"logged; write last, or one of the steps {steps}"
        )
    raise NoSuchCheckpoint(f"it has no checkpoint of step {which}; it has those of the steps {steps}")
