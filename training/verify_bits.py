"""Measures whether a spec trains to the last bit: the same hashes on any number of workers.

Trains one spec on several numbers of workers, with `training.reproducible: bits` and with `curve`. With bits,
weights and logged values are to be equal bit by bit. With curve, rounding makes the losses differ; their
distances are relative to the run on the first number given.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.callbacks.step_times import METRIC, median_seconds
from training.errors import TrainingError
from training.spec import Spec, parse_spec
from training.spec.reproducible import shards_of
from training.spec.resources import Resources
from training.verify import RESULTS, counted, refuse_script, resources

if TYPE_CHECKING:
    from training.host.local import LocalHost

MODES = ("bits", "curve")
_CALLBACK = {"class_path": "training.callbacks.step_times.StepTimes"}


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training. weights: see `training.model.weights`. logged: SHA-256 of all logged values but times.

    train_loss: of each step. seconds_per_step: the median.
    """

    mode: str
    workers: int
    weights: str
    logged: str
    train_loss: Sequence[float]
    seconds_per_step: float


@dataclass(frozen=True, kw_only=True)
class BitsVerification:
    """The runs of both modes, each on the same numbers of workers and in their order."""

    name: str
    precision: str
    shards: int
    runs: Sequence[Run]

    def of(self, mode: str) -> list[Run]:
        return [run for run in self.runs if run.mode == mode]

    def distances(self, run: Run) -> list[float]:
        """Returns the relative distance of the losses, by step, to those on the first number of workers."""
        first = self.of(run.mode)[0]
        return [abs(a - b) / (abs(b) or 1.0) for a, b in zip(run.train_loss, first.train_loss, strict=True)]

    @property
    def different(self) -> dict[str, list[int]]:
        """On which numbers of workers bits gives other hashes than on the first, by what differs."""
        first, *others = self.of("bits")
        found = {
            "weights": [run.workers for run in others if run.weights != first.weights],
            "logged values": [run.workers for run in others if run.logged != first.logged],
        }
        return {what: workers for what, workers in found.items() if workers}

    @property
    def verdict(self) -> str:
        """What was found, in one sentence without its full stop."""
        runs = self.of("bits")
        if not self.different:
            numbers = _listed([run.workers for run in runs])
            return f"bits: equal to the last bit on {numbers} workers, in {self.precision}"
        what = "; ".join(f"{what} on {_listed(numbers)}" for what, numbers in self.different.items())
        return f"bits: not equal to those on {counted(runs[0].workers)}: {what}"


def verify_bits(
    spec: Spec,
    *,
    workers: Sequence[int],
    steps: int,
    code: Path | None,
    output: Path,
    running: Callable[[str], None],
) -> BitsVerification:
    """Trains `spec` for `steps` steps in each mode on each number of workers; writes RESULTS to `output`.

    running: called with a description of each run when it starts. Blocks. Raises TrainingError, and SpecError
    if the spec cannot be trained to the last bit.
    """
    from training.host.local import LocalHost, code_folder

    refuse_script(spec)
    runs = [variant(spec, mode, number, steps, max(workers)) for mode in MODES for number in workers]
    output.mkdir(parents=True, exist_ok=True)
    done = []
    with LocalHost(code_folder(code)) as machine:
        for count, each in enumerate(runs, start=1):
            mode, number = each.training.reproducible, each.resources.max_workers
            running(f"{count} of {len(runs)}: {mode} on {counted(number)}")
            done.append(_train(machine, each, output / f"{mode}-{number}"))
    found = BitsVerification(
        name=spec.name, precision=spec.training.precision, shards=runs[0].shards, runs=done
    )
    (output / RESULTS[0]).write_text(json.dumps(as_json(found), indent=2))
    draw(found, output / RESULTS[1])
    return found


def variant(spec: Spec, mode: str, workers: int, steps: int, most: int) -> Spec:
    """Returns the spec in another mode, on another number of workers and of another length.

    most: the largest number of workers; shards and the CPUs of a worker are the same on all numbers up to it.
    Raises SpecError if it cannot be trained so.
    """
    data = spec.model_dump(mode="json", exclude_unset=True)
    shards = shards_of(spec.training, Resources(workers=most)) if mode == "bits" else None
    length = {"max_epochs": None, "max_steps": steps, "reproducible": mode, "shards": shards}
    data["training"] = spec.training.model_dump(mode="json") | length
    data["training"]["checkpoint"]["deliver"] = "last"
    data["norm"] = spec.norm.model_dump(mode="json", exclude_unset=True) | {"observe_every": None}
    data["resources"] = resources(spec, workers, sharing=most)
    data["trainer"] = data.get("trainer") or {}
    data["trainer"]["callbacks"] = [*(data["trainer"].get("callbacks") or []), _CALLBACK]
    return parse_spec(data)


def _train(machine: LocalHost, spec: Spec, folder: Path) -> Run:
    from training.host.local import prepare_output

    folder, workers = prepare_output(folder), spec.resources.max_workers
    weights = machine.run(spec, workers=workers, output=folder, retries=0, show=False)
    if weights is None:
        raise TrainingError(f"the weights have no SHA-256 to compare; the logs in {folder / 'run'} say why")
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return Run(
        mode=spec.training.reproducible,
        workers=workers,
        weights=weights,
        logged=sha256_of_logged(rows),
        train_loss=[row["train_loss"] for row in rows if "train_loss" in row],
        seconds_per_step=median_seconds(rows),
    )


def sha256_of_logged(rows: Sequence[dict[str, Any]]) -> str:
    """Returns the SHA-256 of all values in the lines of metrics.jsonl but the times of steps."""
    digest = hashlib.sha256()
    for row in rows:
        values = {name: value for name, value in row.items() if name != METRIC}
        digest.update(f"{json.dumps(values, sort_keys=True)}\n".encode())
    return digest.hexdigest()


def as_json(found: BitsVerification) -> dict[str, Any]:
    """Returns all that was found as a JSON object."""
    return {
        "name": found.name,
        "precision": found.precision,
        "shards": found.shards,
        "equal": not found.different,
        "different": found.different,
        "runs": [asdict(run) | {"largest_distance": max(found.distances(run))} for run in found.runs],
    }


def draw(found: BitsVerification, path: Path) -> None:
    """Draws the distances by step, as a PNG; the lowest line of the logarithmic axis stands for 0."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, LogFormatterSciNotation

    lines = [(run, found.distances(run)) for run in found.runs]
    positive = [value for _, values in lines for value in values if value > 0]
    low, high = (min(positive), max(positive)) if positive else (1e-8, 1e-1)
    zero = 10.0 ** (math.floor(math.log10(low)) - 1)

    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    first, *others = found.of("curve")
    for position, run in enumerate(others):
        _plot(axes, found.distances(run), zero, f"C{position}", "-", f"curve, {counted(run.workers)}")
    numbers = _listed([run.workers for run in found.of("bits")])
    if not any(max(found.distances(run)) for run in found.of("bits")):
        steps = [0.0] * len(first.train_loss)
        _plot(axes, steps, zero, "black", "-", f"bits: 0, on {numbers} workers")
    else:
        for position, run in enumerate(found.of("bits")[1:]):
            _plot(axes, found.distances(run), zero, f"C{position}", "--", f"bits, {counted(run.workers)}")
    axes.set_yscale("log")
    axes.set_ylim(zero / 3, high * 10)
    powers = range(round(math.log10(zero)) + 1, math.ceil(math.log10(high)) + 2)
    axes.yaxis.set_major_locator(FixedLocator([zero, *(10.0**power for power in powers)]))
    exponents = LogFormatterSciNotation()
    axes.yaxis.set_major_formatter(lambda value, place: "0" if place == 0 else exponents(value))
    axes.minorticks_off()
    axes.set(
        title=f"{found.name}: distance of the losses ({found.precision})",
        xlabel="optimizer step",
        ylabel=f"relative distance to {counted(first.workers)}",
    )
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=110)


def _plot(axes: Any, values: Sequence[float], zero: float, color: str, style: str, label: str) -> None:
    shown = [value or zero for value in values]
    axes.plot(range(1, len(values) + 1), shown, color=color, linestyle=style, linewidth=1.4, label=label)


def _listed(numbers: Sequence[int]) -> str:
    *most, last = map(str, numbers)
    return f"{', '.join(most)} and {last}" if most else last
