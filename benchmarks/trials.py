"""Contestants in turns, so that whatever else the machine does meets all of them alike."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sized

from benchmarks.progress import Progress
from benchmarks.result import Options, Samples

Contestant = Callable[[], Mapping[str, float]]
"""One run: what was measured, by the name of the measure."""

BEFORE = "before"
EARLIER = (
    f"{BEFORE}: the version in the checkout that --before names, with the same interpreter and libraries."
)

REST_SECONDS = 3.0
"""Between two runs, for the processes of the last one to go."""


def runs(contestants: Sized, options: Options, *, warm_up: bool = True) -> int:
    """How many there are in all, warm-ups included."""
    return len(contestants) * (options.repeats + _warm_ups(options, warm_up))


def in_turns(
    shown: Progress,
    contestants: Mapping[str, Contestant],
    options: Options,
    *,
    warm_up: bool = True,
    rest: float = REST_SECONDS,
) -> Samples:
    """Each contestant `options.repeats` times.

    warm_up: each of them once before, which is not counted; not if the benchmark is to be quick.
    """
    samples: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for repeat in range(-_warm_ups(options, warm_up), options.repeats):
        for name, run in contestants.items():
            shown.doing(name)
            measured = run()
            said = ", ".join(f"{measure} {value:.2f}" for measure, value in measured.items())
            shown.done(f"{name}{' (warm-up)' if repeat < 0 else ''}: {said}")
            for measure, value in measured.items() if repeat >= 0 else ():
                samples[measure][name].append(value)
            time.sleep(rest)
    return {measure: dict(found) for measure, found in samples.items()}


def _warm_ups(options: Options, wanted: bool) -> int:
    return int(wanted and not options.quick)
