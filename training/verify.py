"""What splitting a batch does to a training: one spec on several numbers of workers, with both BatchNorms.

The differences of loss curves are relative to the run on the first number of workers given: with synchronized
statistics they are rounding, with each worker's own they are another training.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.spec import Spec

if TYPE_CHECKING:
    from training.host.local import LocalHost

KINDS = ("sync_batch_norm", "batch_norm")
BOUNDS = {"64-true": 1e-9, "32-true": 1e-4}
"""How far loss curves may be apart for rounding that does not grow; of half precisions nothing is said."""
GROWN = 10.0
"""Where a training makes rounding grow, curves may be apart by this many times what a change in the last bit
of the first weights does: that is one change, while another split rounds differently at every step."""
RESULTS = ("verify.json", "verify.png")
_SMALLEST = 1e-17  # a difference of 0 on a logarithmic axis


@dataclass(frozen=True, kw_only=True)
class Curve:
    """The training loss of one run, a value for each optimizer step."""

    kind: str
    workers: int
    losses: Sequence[float]


@dataclass(frozen=True, kw_only=True)
class Verification:
    """last_bit: sync_batch_norm on the first number of workers, from weights changed in their last bit."""

    name: str
    precision: str
    curves: Sequence[Curve]
    last_bit: Curve | None = None

    def differences(self, curve: Curve) -> list[float]:
        """Of every step, relative, to the run of its kind on the first number of workers."""
        first = next(other for other in self.curves if other.kind == curve.kind)
        return [abs(a - b) / abs(b) for a, b in zip(curve.losses, first.losses, strict=True)]

    @property
    def bound(self) -> float | None:
        return BOUNDS.get(self.precision)

    @property
    def largest(self) -> float:
        """How far the curves of sync_batch_norm are apart."""
        return max(max(self.differences(curve)) for curve in self._ours())

    @property
    def holds(self) -> bool:
        """Whether the curves of sync_batch_norm differ by rounding alone, as far as it can be said."""
        if self.bound is None:
            return True
        bounds = self._bounds(self.bound)
        return all(
            difference <= bound
            for curve in self._ours()
            for difference, bound in zip(self.differences(curve), bounds, strict=True)
        )

    def _ours(self) -> list[Curve]:
        return [curve for curve in self.curves if curve.kind == "sync_batch_norm"]

    def _bounds(self, smallest: float) -> list[float]:
        """Of every step: what rounding grows to does not shrink again."""
        if self.last_bit is None:
            return [smallest] * len(self.curves[0].losses)
        grown = accumulate(self.differences(self.last_bit), max)
        return [max(smallest, GROWN * difference) for difference in grown]


def verify(
    spec: Spec,
    *,
    workers: Sequence[int],
    steps: int,
    code: Path | None,
    output: Path,
    running: Callable[[str], None],
) -> Verification:
    """Trains `spec` for `steps` steps with each kind on each number of workers; RESULTS go to `output`.

    `running` is told what begins. Blocks; raises TrainingError.
    """
    from training.host.local import LocalHost, code_folder

    output.mkdir(parents=True, exist_ok=True)
    runs = [(kind, number, False) for kind in KINDS for number in workers]
    runs.append((KINDS[0], workers[0], True))
    curves = []
    with LocalHost(code_folder(code)) as machine:
        for count, (kind, number, last_bit) in enumerate(runs, start=1):
            what = f"{kind} on {_workers(number)}"
            running(
                f"{count} of {len(runs)}: {what}{', the last bits of the first weights changed' * last_bit}"
            )
            folder = output / f"{kind}-{number}{'-last-bit' * last_bit}"
            losses = _train(machine, _variant(spec, kind, number, steps), number, folder, last_bit=last_bit)
            curves.append(Curve(kind=kind, workers=number, losses=losses))
    *curves, changed = curves
    found = Verification(name=spec.name, precision=spec.training.precision, curves=curves, last_bit=changed)
    (output / "verify.json").write_text(json.dumps(_as_json(found), indent=2))
    draw(found, output / "verify.png")
    return found


def _variant(spec: Spec, kind: str, workers: int, steps: int) -> Spec:
    """The same spec but for its normalisation and workers, which share this machine's CPUs if they must."""
    from training.host.local import usable_cpus

    cpus = usable_cpus()
    data = spec.model_dump(mode="json", exclude_unset=True)
    data["norm"] = {"kind": kind}
    data["training"] = spec.training.model_dump(mode="json") | {"max_epochs": None, "max_steps": steps}
    data["resources"] = {
        "workers": workers,
        "cpus_per_worker": min(spec.resources.cpus_per_worker, int(100 * cpus / workers) / 100),
        "gpus_per_worker": spec.resources.gpus_per_worker,
    }
    return Spec.model_validate(data)


def _train(machine: LocalHost, spec: Spec, workers: int, folder: Path, *, last_bit: bool) -> list[float]:
    from training.host.local import fresh

    folder = fresh(folder)
    machine.run(spec, workers=workers, output=folder, curves_only=True, last_bit=last_bit, retries=0)
    rows = (json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines())
    return [row["train_loss"] for row in rows]


def _as_json(found: Verification) -> dict[str, Any]:
    return {
        "name": found.name,
        "precision": found.precision,
        "bound": found.bound,
        "holds": found.holds,
        "runs": [
            {
                "norm": curve.kind,
                "workers": curve.workers,
                "largest_difference": max(found.differences(curve)),
                "train_loss": list(curve.losses),
            }
            for curve in found.curves
        ],
        "last_bit": found.last_bit
        and {
            "workers": found.last_bit.workers,
            "largest_difference": max(found.differences(found.last_bit)),
            "train_loss": list(found.last_bit.losses),
        },
    }


def draw(found: Verification, path: Path) -> None:
    """Differences by step: what is flat at the bottom is rounding."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    first = found.curves[0].workers
    for position, curve in enumerate(c for c in found.curves if c.workers != first):
        values = [max(value, _SMALLEST) for value in found.differences(curve)]
        ours = curve.kind == "sync_batch_norm"
        axes.plot(
            range(1, len(values) + 1),
            values,
            color=f"C{position % max(len(found.curves) // 2 - 1, 1)}",
            linestyle="-" if ours else "--",
            linewidth=1.4,
            label=f"{curve.kind}, {_workers(curve.workers)}",
        )
    if found.last_bit is not None:
        values = [max(value, _SMALLEST) for value in found.differences(found.last_bit)]
        label = f"last bits of the first weights changed, {_workers(first)}"
        axes.plot(range(1, len(values) + 1), values, color="gray", linestyle=":", linewidth=1.4, label=label)
    axes.set_yscale("log")
    axes.set(
        title=f"{found.name}: what splitting the batch does to the loss ({found.precision})",
        xlabel="optimizer step",
        ylabel=f"difference to {_workers(first)}, relative",
    )
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=110)


def _workers(number: int) -> str:
    return f"{number} worker{'s' if number > 1 else ''}"
