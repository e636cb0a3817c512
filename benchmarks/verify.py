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
    f"`syncbn verify recipes/digits.yaml --workers {WORKERS} --steps {{steps}} --set {FLOAT64}`: each number "
    "of workers with both kinds of BatchNorm, six trainings one after the other, and a seventh of ours from "
    "weights changed in the last bit; from the shell until the command has ended. In float64, because the "
    "earlier version takes rounding that grows in float32 for a difference, and fails.",
    "In turns, after a warm-up run of each that is not counted (none with --quick).",
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
