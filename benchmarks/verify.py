"""Duration of `syncbn verify`; with `--before`, also of an earlier version."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from benchmarks import jobs
from benchmarks.progress import progress
from benchmarks.result import Options, Result, comparison
from benchmarks.servers import SYNCBN, environment, folder_of_our_own, seconds_of
from benchmarks.trials import BEFORE, EARLIER, Contestant, in_turns, runs

WORKERS, STEPS, QUICK_STEPS = "1,2,3", 50, 5
FLOAT64 = "training.precision=64-true"
OURS = "ours"
SECONDS = "syncbn verify, s"
NOTES = (
    f"`syncbn verify recipes/digits.yaml --workers {WORKERS} --steps {{steps}} --set {FLOAT64}`: six "
    "trainings in sequence, with both kinds of BatchNorm on each number of workers, and in ours a seventh "
    "from weights changed in the last bit; from the start of the command to its exit. In float64, because in "
    "float32 the earlier version treats amplified rounding as a difference, and fails.",
    "Contestants run in turns, after an uncounted warm-up run of each (none with --quick).",
)


def measure(options: Options) -> Result:
    steps = QUICK_STEPS if options.quick else STEPS
    contestants: dict[str, Contestant] = {OURS: lambda: run(steps)}
    if (earlier := options.before) is not None:
        contestants[BEFORE] = lambda: run(steps, earlier)
    with progress("verify", runs(contestants, options)) as shown:
        samples = in_turns(shown, contestants, options)
    notes = [note.format(steps=steps) for note in NOTES] + [EARLIER] * (earlier is not None)
    reference = None if earlier is None else BEFORE
    return comparison("Duration of syncbn verify", samples, reference=reference, notes=notes)


def run(steps: int, checkout: Path | None = None) -> Mapping[str, float]:
    with folder_of_our_own() as folder:
        changes = ["--workers", WORKERS, "--steps", str(steps), "--set", FLOAT64]
        command = [SYNCBN, "verify", str(jobs.RECIPE), *changes, "--output", str(folder / "output")]
        return {SECONDS: seconds_of(command, folder, environment(checkout))}
