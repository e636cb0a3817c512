"""Runs contestants in turns, so that other load on the machine affects all of them alike."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sized

from benchmarks.progress import Progress
from benchmarks.result import Options, Samples

Contestant = Callable[[], Mapping[str, float]]
"""Runs once and returns the values by measure."""

BEFORE = "before"
EARLIER = (
    f"{BEFORE}: the version in the checkout that --before names, with the same interpreter and libraries."
)

REST_SECONDS = 3.0
"""Pause between two runs, in which the processes of the last one exit."""


def runs(contestants: Sized, options: Options, *, warm_up: bool = True) -> int:
    """Returns the number of runs, warm-ups included."""
    return len(contestants) * (options.repeats + _warm_ups(options, warm_up))


def in_turns(
    shown: Progress,
    contestants: Mapping[str, Contestant],
    options: Options,
    *,
    warm_up: bool = True,
    rest: float = REST_SECONDS,
) -> Samples:
    """Runs each contestant `options.repeats` times and returns the samples.

    warm_up: runs each contestant once before, uncounted, unless `options.quick`. rest: seconds between runs.
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
