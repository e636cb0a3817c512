"""Measures how splitting a batch over workers changes training, with and without synchronized BatchNorm.

Trains one spec on several numbers of workers. Differences between loss curves are relative to the run on the
first number given. With synchronized statistics they are only rounding; with per-worker statistics the runs
diverge.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.errors import BuildError
from training.spec import Spec, parse_spec

if TYPE_CHECKING:
    from training.host.local import LocalHost

KINDS = ("sync_batch_norm", "batch_norm")
BOUNDS = {"64-true": 1e-9, "32-true": 1e-4}
"""Maximum relative difference of loss curves if rounding does not grow; half precisions have no bound."""
AMPLIFICATION = 10.0
"""If training amplifies rounding, curves may differ by this factor times the effect of changing the last bit
of the initial weights. That is a single change, while a different split rounds differently at every step."""
RESULTS = ("verify.json", "verify.png")
_SMALLEST = 1e-17  # drawn for a difference of 0, as the axis is logarithmic


@dataclass(frozen=True, kw_only=True)
class Curve:
    """The training loss of one run, one value per optimizer step."""

    kind: str
    workers: int
    losses: Sequence[float]


@dataclass(frozen=True, kw_only=True)
class Verification:
    """The curves of all runs. last_bit: with synchronized BatchNorm on the first number of workers, from
    initial weights changed in their last bit.
    """

    name: str
    precision: str
    curves: Sequence[Curve]
    last_bit: Curve | None = None

    def differences(self, curve: Curve) -> list[float]:
        """Returns the relative difference, per step, to the same kind on the first number of workers."""
        first = next(other for other in self.curves if other.kind == curve.kind)
        return [abs(a - b) / abs(b) for a, b in zip(curve.losses, first.losses, strict=True)]

    @property
    def bound(self) -> float | None:
        """The bound on rounding for this precision, None if there is none."""
        return BOUNDS.get(self.precision)

    @property
    def largest(self) -> float:
        """The largest difference between the curves of sync_batch_norm."""
        return max(max(self.differences(curve)) for curve in self._synchronized())

    @property
    def holds(self) -> bool:
        """Whether the curves of sync_batch_norm differ only by rounding; True if there is no bound."""
        if self.bound is None:
            return True
        bounds = self._bounds(self.bound)
        return all(
            difference <= bound
            for curve in self._synchronized()
            for difference, bound in zip(self.differences(curve), bounds, strict=True)
        )

    @property
    def differs_at_once(self) -> bool:
        """Whether curves of sync_batch_norm differ by more than rounding before any weight has changed."""
        return self.bound is not None and any(
            self.differences(curve)[0] > self._bounds(self.bound)[0] for curve in self._synchronized()
        )

    def _synchronized(self) -> list[Curve]:
        return [curve for curve in self.curves if curve.kind == "sync_batch_norm"]

    def _bounds(self, smallest: float) -> list[float]:
        """Returns the bound at every step; it never decreases, because amplified rounding does not shrink."""
        if self.last_bit is None:
            return [smallest] * len(self.curves[0].losses)
        grown = accumulate(self.differences(self.last_bit), max)
        return [max(smallest, AMPLIFICATION * difference) for difference in grown]


def verify(
    spec: Spec,
    *,
    workers: Sequence[int],
    steps: int,
    code: Path | None,
    output: Path,
    running: Callable[[str], None],
) -> Verification:
    """Trains `spec` for `steps` steps with each kind on each number of workers; writes RESULTS to `output`.

    running: called with a description of each run when it starts. Blocks. Raises TrainingError.
    """
    from training.host.local import LocalHost, code_folder

    refuse_script(spec)
    output.mkdir(parents=True, exist_ok=True)
    runs = [(kind, number, False) for kind in KINDS for number in workers]
    runs.append((KINDS[0], workers[0], True))
    curves = []
    with LocalHost(code_folder(code)) as machine:
        for count, (kind, number, last_bit) in enumerate(runs, start=1):
            what = f"{kind} on {counted(number)}"
            running(
                f"{count} of {len(runs)}: {what}{', the last bits of the initial weights changed' * last_bit}"
            )
            folder = output / f"{kind}-{number}{'-last-bit' * last_bit}"
            losses = _train(machine, variant(spec, kind, number, steps), number, folder, last_bit=last_bit)
            curves.append(Curve(kind=kind, workers=number, losses=losses))
    *curves, changed = curves
    verification = Verification(
        name=spec.name, precision=spec.training.precision, curves=curves, last_bit=changed
    )
    (output / "verify.json").write_text(json.dumps(_as_json(verification), indent=2))
    draw(verification, output / "verify.png")
    return verification


def refuse_script(spec: Spec) -> None:
    """Raises BuildError for a script."""
    if spec.script is not None:
        raise BuildError(
            "script",
            "verify compares the loss at each step, and the steps of a script are not known; train it with "
            "--set resources.workers=1 and with 2, and compare what it reports",
        )


def variant(spec: Spec, kind: str, workers: int, steps: int) -> Spec:
    """Returns the spec with another normalisation, number of workers and length; workers may share CPUs.

    Raises SpecError if it cannot be trained so.
    """
    data = spec.model_dump(mode="json", exclude_unset=True)
    data["norm"] = {"kind": kind}
    data["training"] = spec.training.model_dump(mode="json") | {"max_epochs": None, "max_steps": steps}
    data["resources"] = resources(spec, workers, sharing=workers)
    return parse_spec(data)


def resources(spec: Spec, workers: int, *, sharing: int) -> dict[str, Any]:
    """Returns the section of a number of workers with as many CPUs each as `sharing` workers have here."""
    from training.host.local import usable_cpus

    share = int(100 * usable_cpus() / sharing) / 100
    return {
        "workers": workers,
        "cpus_per_worker": min(spec.resources.cpus_per_worker, share),
        "gpus_per_worker": spec.resources.gpus_per_worker,
    }


def _train(machine: LocalHost, spec: Spec, workers: int, folder: Path, *, last_bit: bool) -> list[float]:
    from training.host.local import prepare_output

    folder = prepare_output(folder)
    machine.run(spec, workers=workers, output=folder, curves_only=True, last_bit=last_bit, retries=0)
    rows = (json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines())
    return [row["train_loss"] for row in rows if "train_loss" in row]


def _as_json(verification: Verification) -> dict[str, Any]:
    return {
        "name": verification.name,
        "precision": verification.precision,
        "bound": verification.bound,
        "holds": verification.holds,
        "runs": [
            {
                "norm": curve.kind,
                "workers": curve.workers,
                "largest_difference": max(verification.differences(curve)),
                "train_loss": list(curve.losses),
            }
            for curve in verification.curves
        ],
        "last_bit": verification.last_bit
        and {
            "workers": verification.last_bit.workers,
            "largest_difference": max(verification.differences(verification.last_bit)),
            "train_loss": list(verification.last_bit.losses),
        },
    }


def draw(verification: Verification, path: Path) -> None:
    """Draws the differences by step, as a PNG: curves that stay flat at the bottom are rounding."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    first = verification.curves[0].workers
    for position, curve in enumerate(c for c in verification.curves if c.workers != first):
        values = [max(value, _SMALLEST) for value in verification.differences(curve)]
        is_synchronized = curve.kind == "sync_batch_norm"
        axes.plot(
            range(1, len(values) + 1),
            values,
            color=f"C{position % max(len(verification.curves) // 2 - 1, 1)}",
            linestyle="-" if is_synchronized else "--",
            linewidth=1.4,
            label=f"{curve.kind}, {counted(curve.workers)}",
        )
    if verification.last_bit is not None:
        values = [max(value, _SMALLEST) for value in verification.differences(verification.last_bit)]
        label = f"last bits of the initial weights changed, {counted(first)}"
        axes.plot(range(1, len(values) + 1), values, color="gray", linestyle=":", linewidth=1.4, label=label)
    axes.set_yscale("log")
    axes.set(
        title=f"{verification.name}: effect of splitting the batch on the loss ({verification.precision})",
        xlabel="optimizer step",
        ylabel=f"relative difference to {counted(first)}",
    )
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=110)


def counted(number: int) -> str:
    """Returns a number of workers in words."""
    return f"{number} worker{'s' if number > 1 else ''}"
