"""What splitting a batch does to a training: one spec on several numbers of workers, with both BatchNorms.

The differences of loss curves are relative to the run on the first number of workers given: with synchronized
statistics they are rounding, with each worker's own they are another training.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.spec import Spec

if TYPE_CHECKING:
    from training.local import Machine

KINDS = ("sync_batch_norm", "batch_norm")
BOUNDS = {"64-true": 1e-9, "32-true": 1e-4}
"""How far loss curves may be apart for rounding alone; of half precisions nothing is said."""
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
    name: str
    precision: str
    curves: Sequence[Curve]

    def differences(self, curve: Curve) -> list[float]:
        """Of every step, relative, to the run of its kind on the first number of workers."""
        first = next(other for other in self.curves if other.kind == curve.kind)
        return [abs(a - b) / abs(b) for a, b in zip(curve.losses, first.losses, strict=True)]

    @property
    def bound(self) -> float | None:
        return BOUNDS.get(self.precision)

    @property
    def holds(self) -> bool:
        """Whether the curves of sync_batch_norm differ by rounding alone, as far as it can be said."""
        ours = [max(self.differences(curve)) for curve in self.curves if curve.kind == "sync_batch_norm"]
        return self.bound is None or max(ours) <= self.bound


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
    from training.local import Machine, code_folder

    output.mkdir(parents=True, exist_ok=True)
    runs = [(kind, number) for kind in KINDS for number in workers]
    curves = []
    with Machine(code_folder(code)) as machine:
        for count, (kind, number) in enumerate(runs, start=1):
            running(f"{count} of {len(runs)}: {kind} on {number} worker{'s' if number > 1 else ''}")
            folder = output / f"{kind}-{number}"
            losses = _train(machine, _variant(spec, kind, number, steps), number, folder)
            curves.append(Curve(kind=kind, workers=number, losses=losses))
    found = Verification(name=spec.name, precision=spec.training.precision, curves=curves)
    (output / "verify.json").write_text(json.dumps(_as_json(found), indent=2))
    draw(found, output / "verify.png")
    return found


def _variant(spec: Spec, kind: str, workers: int, steps: int) -> Spec:
    """The same spec but for its normalisation and workers, which share this machine's CPUs if they must."""
    from training.local import usable_cpus

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


def _train(machine: Machine, spec: Spec, workers: int, folder: Path) -> list[float]:
    from training.local import fresh

    folder = fresh(folder)
    machine.run(spec, workers=workers, output=folder, curves_only=True, retries=0)
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
            label=f"{curve.kind}, {curve.workers} workers",
        )
    axes.set_yscale("log")
    axes.set(
        title=f"{found.name}: what splitting the batch does to the loss ({found.precision})",
        xlabel="optimizer step",
        ylabel=f"difference to {first} worker{'s' if first > 1 else ''}, relative",
    )
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=110)
