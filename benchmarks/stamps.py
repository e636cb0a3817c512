"""The start times of training steps, as written by the modules in `benchmarks.uploaded`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import NamedTuple


class Stamp(NamedTuple):
    """The start of a step. seconds: on the machine's monotonic clock. workers: the number of ranks."""

    step: int
    seconds: float
    workers: int


def read(path: Path) -> list[Stamp]:
    """Returns the complete lines of a file, in order; none if the file does not exist yet."""
    if not path.exists():
        return []
    whole, _, _ = path.read_text().rpartition("\n")
    fields = (line.split() for line in whole.splitlines())
    return [Stamp(int(step), float(seconds), int(workers)) for step, seconds, workers in fields]


def seconds_by_step(stamps: Sequence[Stamp], *, after: int = 0) -> dict[int, float]:
    """Returns the seconds from the start of each step after `after` to the start of the next.

    Skips the last step before a restart, which has no next step.
    """
    return {
        now.step: then.seconds - now.seconds
        for now, then in pairwise(stamps)
        if now.step > after and then.step == now.step + 1 and then.workers == now.workers
    }


def seconds_of_a_save(seconds: dict[int, float], *, every: int) -> float:
    """Returns the median step with a checkpoint minus the median step without one."""
    saving = [value for step, value in seconds.items() if step % every == 0]
    return median(saving) - median(value for step, value in seconds.items() if step % every)


def first_after(stamps: Iterable[Stamp], moment: float, *, workers: int | None = None) -> Stamp | None:
    """Returns the first step after `moment`, on `workers` workers if given; None if there is none."""
    return next(
        (stamp for stamp in stamps if stamp.seconds > moment and workers in {None, stamp.workers}), None
    )
