"""When the steps of a training began, as modules in `benchmarks.uploaded` have written it down."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import NamedTuple


class Stamp(NamedTuple):
    """The beginning of a step. seconds: of the machine's monotonic clock. workers: how many made it."""

    step: int
    seconds: float
    workers: int


def read(path: Path) -> list[Stamp]:
    """The whole lines of a file, in their order; none if it is not there yet."""
    if not path.exists():
        return []
    whole, _, _ = path.read_text().rpartition("\n")
    fields = (line.split() for line in whole.splitlines())
    return [Stamp(int(step), float(seconds), int(workers)) for step, seconds, workers in fields]


def seconds_by_step(stamps: Sequence[Stamp], *, after: int = 0) -> dict[int, float]:
    """From the beginning of each step to that of the next, of steps after `after`.

    Where a training started again there is no next one.
    """
    return {
        now.step: then.seconds - now.seconds
        for now, then in pairwise(stamps)
        if now.step > after and then.step == now.step + 1 and then.workers == now.workers
    }


def seconds_of_a_save(seconds: dict[int, float], *, every: int) -> float:
    """The median step that has a checkpoint, less the median step that has none."""
    saving = [value for step, value in seconds.items() if step % every == 0]
    return median(saving) - median(value for step, value in seconds.items() if step % every)


def first_after(stamps: Iterable[Stamp], moment: float, *, workers: int | None = None) -> Stamp | None:
    """The first step that began after that moment, on so many workers if that is given."""
    return next(
        (stamp for stamp in stamps if stamp.seconds > moment and workers in {None, stamp.workers}), None
    )
