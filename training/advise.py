"""Measures which normalisation a spec's model needs: how noisy a worker's statistics are, what others cost.

Trains a few steps of the spec on this machine: once with the statistics of the global batch, observed layer
by layer, and once with each kind of normalisation for the time of a step.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from training.callbacks.step_times import median_seconds
from training.errors import BuildError
from training.noise_rule import FREE, LOCAL, NOTICEABLE, SYNC, global_noise, reason, recommended
from training.spec import Spec, parse_spec, shares

if TYPE_CHECKING:
    from training.host.local import LocalHost

RESULTS = ("advice.json", "advice.png")


@dataclass(frozen=True, kw_only=True)
class Layer:
    """How far a worker's statistics of one layer are from those of the global batch: medians over the steps.

    mean_noise: in units of the channels' standard deviation σ; var_noise: of σ² (`sync_bn.Observation`).
    dead, exploding: numbers of channels, in the last step.
    """

    name: str
    mean_noise: float
    var_noise: float
    dead: int
    exploding: int


@dataclass(frozen=True, kw_only=True)
class Advice:
    """What was measured, and what follows from it.

    share: the part of a batch's samples that worker 0 has, at most 1. batch: the samples of a batch; None if
    the data's own loaders decide. seconds: of a step, the median, by norm.kind.
    """

    name: str
    workers: int
    share: float
    batch: int | None
    layers: Sequence[Layer]
    seconds: Mapping[str, float]

    @property
    def noise(self) -> float:
        """The median over the layers of the noise of a worker's means, in units of σ."""
        return median(layer.mean_noise for layer in self.layers) if self.layers else 0.0

    @property
    def global_noise(self) -> float:
        """The same of the global batch's means against those of all data: an estimate."""
        return global_noise(self.noise, self.share)

    @property
    def cost(self) -> float:
        """The part of a step with batch_norm that synchronizing adds; negative if it is faster here."""
        return self.seconds[SYNC] / self.seconds[LOCAL] - 1

    @property
    def recommended(self) -> str:
        """The norm.kind that follows; "keep" for a model without BatchNorm."""
        if not self.layers:
            return "keep"
        return recommended(self.global_noise)

    def words(self) -> list[str]:
        """Returns what was measured and what it means, a sentence or two each."""
        if not self.layers:
            return ["The model has no BatchNorm layer, so norm.kind changes nothing."]
        worst = max(self.layers, key=lambda layer: layer.mean_noise)
        return [
            f"{_count(len(self.layers), 'BatchNorm layer')}; a worker has {self._share()} of a batch.",
            f"With its own statistics (batch_norm) a worker's means would be off by {self.noise:.2g} σ, at "
            f"most {worst.mean_noise:.2g} σ in {worst.name or 'the model'}; its variances by "
            f"{100 * median(layer.var_noise for layer in self.layers):.2g} %.",
            f"Those of the whole batch are off by about {self.global_noise:.2g} σ from those of the data.",
            f"A step takes {_times(self.seconds)}: synchronizing costs {100 * self.cost:.0f} % here.",
            reason(self.noise, self.global_noise),
            *self._warnings(),
        ]

    def _share(self) -> str:
        if self.batch is None:
            return f"{100 * self.share:.3g} %"
        return f"{round(self.share * self.batch)} of the {self.batch} samples"

    def _warnings(self) -> list[str]:
        found = []
        if dead := [layer for layer in self.layers if layer.dead]:
            found.append(
                f"{_count(sum(layer.dead for layer in dead), 'channel')} with hardly any variance, in "
                f"{_names(dead)}: eps keeps their outputs near 0."
            )
        if exploding := [layer for layer in self.layers if layer.exploding]:
            found.append(
                f"{_count(sum(layer.exploding for layer in exploding), 'channel')} above 10,000, in "
                f"{_names(exploding)}: half precision may overflow."
            )
        return found


def advise(
    spec: Spec, *, workers: int, steps: int, code: Path | None, output: Path, running: Callable[[str], None]
) -> Advice:
    """Trains a few steps with each kind on `workers` workers of this machine; writes RESULTS to `output`.

    running: called with a description of each run when it starts. Blocks. Raises TrainingError.
    """
    from training.host.local import LocalHost, code_folder

    if spec.script is not None:
        raise BuildError("script", "its normalisation is in the script; sync_bn.observe measures it there")
    output.mkdir(parents=True, exist_ok=True)
    runs = [(SYNC, 1), (SYNC, None), (LOCAL, None), (FREE, None)]
    rows: dict[tuple[str, int | None], list[dict[str, float]]] = {}
    with LocalHost(code_folder(code)) as machine:
        for number, (kind, every) in enumerate(runs, start=1):
            running(f"{number} of {len(runs)}: {kind}{', observed' if every else ''} on {workers} workers")
            variant = _variant(spec, kind, workers, steps, every)
            folder = output / f"{kind}{'-observed' * bool(every)}"
            rows[kind, every] = _train(machine, variant, workers, folder)
            if every and not _layers(rows[kind, every]):
                break
    size = spec.training.global_batch_size
    batch = None if size is None else size // spec.training.accumulate_grad_batches
    advice = Advice(
        name=spec.name,
        workers=workers,
        share=1 / workers if batch is None else shares(batch, workers)[0] / batch,
        batch=batch,
        layers=_layers(rows[SYNC, 1]),
        seconds={kind: median_seconds(found) for (kind, every), found in rows.items() if every is None},
    )
    (output / RESULTS[0]).write_text(json.dumps(as_json(advice), indent=2))
    if advice.layers:
        draw(advice, output / RESULTS[1])
    return advice


def _variant(spec: Spec, kind: str, workers: int, steps: int, every: int | None) -> Spec:
    from training.verify import variant

    data = variant(spec, kind, workers, steps).model_dump(mode="json", exclude_unset=True)
    callback = {"class_path": "training.callbacks.step_times.StepTimes"}
    data["norm"] |= {"observe_every": every}
    data["trainer"] = data.get("trainer") or {}
    data["trainer"]["callbacks"] = [*(data["trainer"].get("callbacks") or []), callback]
    return parse_spec(data)


def _train(machine: LocalHost, spec: Spec, workers: int, folder: Path) -> list[dict[str, float]]:
    from training.host.local import prepare_output

    folder = prepare_output(folder)
    machine.run(spec, workers=workers, output=folder, curves_only=True, retries=0, show=False)
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def _layers(rows: Sequence[Mapping[str, float]]) -> list[Layer]:
    names = dict.fromkeys(
        key.removeprefix("norm/").removesuffix("/mean_noise")
        for row in rows
        for key in row
        if key.startswith("norm/") and key.endswith("/mean_noise")
    )
    return [
        Layer(
            name="" if name == "model" else name,
            mean_noise=median(_values(rows, f"norm/{name}/mean_noise")),
            var_noise=median(_values(rows, f"norm/{name}/var_noise")),
            dead=int(_values(rows, f"norm/{name}/dead")[-1]),
            exploding=int(_values(rows, f"norm/{name}/exploding")[-1]),
        )
        for name in names
    ]


def _values(rows: Sequence[Mapping[str, float]], key: str) -> list[float]:
    return [row[key] for row in rows if key in row]


def _times(seconds: Mapping[str, float]) -> str:
    return ", ".join(f"{1000 * value:.3g} ms with {kind}" for kind, value in seconds.items())


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' if number != 1 else ''}"


def _names(layers: Sequence[Layer]) -> str:
    shown = [layer.name or "the model" for layer in layers[:3]]
    return ", ".join(shown) + (f" and {len(layers) - 3} more" if len(layers) > 3 else "")


def as_json(advice: Advice) -> dict[str, Any]:
    """Returns the advice as a JSON object."""
    fields = {key: getattr(advice, key) for key in ("name", "workers", "share", "batch", "recommended")}
    measured = {} if not advice.layers else {"noise": advice.noise, "global_noise": advice.global_noise}
    return {
        **fields,
        **measured,
        "seconds": dict(advice.seconds),
        "layers": [vars(layer) for layer in advice.layers],
        "words": advice.words(),
    }


def draw(advice: Advice, path: Path) -> None:
    """Draws the noise of each layer as a PNG, in the order of the model."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    places = range(1, len(advice.layers) + 1)
    axes.plot(places, [layer.mean_noise for layer in advice.layers], marker="o", label="mean, in σ")
    axes.plot(places, [layer.var_noise for layer in advice.layers], marker="s", label="variance, in σ²")
    axes.axhline(NOTICEABLE, color="gray", linestyle=":", label=f"noticeable: {NOTICEABLE:g}")
    axes.set_yscale("log")
    axes.set(
        title=f"{advice.name}: statistics of one of {advice.workers} workers against those of all",
        xlabel="BatchNorm layer, in the order of the model",
        ylabel="root mean square difference",
    )
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=110)
