"""Section 2: how activation distributions and gradients change during the training."""

from __future__ import annotations

from statistics import mean
from typing import TYPE_CHECKING, Any

from benchmarks.paper.drawing import WITH, WITHOUT, curve, finish, percent
from benchmarks.paper.experiment import Claim, Drawing, Experiment, Runs
from benchmarks.paper.points import Quick
from benchmarks.paper.runs import Run, chosen, spread

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CHANGE, SMOOTHNESS = "gradient/change", "gradient/smoothness"


def layers_of(run: Run) -> list[str]:
    """Returns the layers in the network's order, which is that of the numbers in their names."""

    def parts(name: str) -> list[tuple[int, str]]:
        return [(int(part), "") if part.isdigit() else (-1, part) for part in name.split(".")]

    return sorted((name.split("/")[1] for name in run.curves if name.endswith("/std")), key=parts)


def draw_moments(runs: Runs, figure: Figure) -> None:
    panels = figure.subplots(2, 2, sharex=True, sharey=True)
    for row, measure, colours in zip(panels, ("mean", "std"), ("RdBu_r", "viridis"), strict=True):
        shown = [
            (panel, norm, run)
            for panel, norm in zip(row, (False, True), strict=True)
            for run in chosen(runs, norm=norm)[:1]
        ]
        highest = max((abs(value) for *_, run in shown for value in _values(run, measure)), default=1.0)
        for panel, norm, run in shown:
            image = _heat_map(panel, run, measure, colours, highest)
            finish(panel, legend=False, title=f"{measure}, {'with' if norm else 'without'} BN")
        figure.colorbar(image, ax=list(row))
    for panel in panels[-1]:
        panel.set_xlabel("step")
    for row in panels:
        row[0].set_ylabel("hidden layer")


def _values(run: Run, measure: str) -> list[float]:
    return [value for layer in layers_of(run) for _, value in run.curves[f"input/{layer}/{measure}"]]


def _heat_map(panel: Any, run: Run, measure: str, colours: str, highest: float) -> Any:
    curves = [run.curves[f"input/{layer}/{measure}"] for layer in layers_of(run)]
    at = [step for step, _ in curves[0]]
    rows = [[value for _, value in curve] for curve in curves]
    numbers = list(range(1, len(rows) + 1))
    panel.set_yticks(numbers)
    lowest = -highest if measure == "mean" else 0.0
    return panel.pcolormesh(at, numbers, rows, cmap=colours, vmin=lowest, vmax=highest, shading="nearest")


def draw_gradients(runs: Runs, figure: Figure) -> None:
    for panel, metric, title in zip(
        figure.subplots(1, 2),
        (CHANGE, SMOOTHNESS),
        ("change of the gradient, relative", "change of the gradient per distance"),
        strict=True,
    ):
        panel.set_yscale("log")
        for norm, colour in ((False, WITHOUT), (True, WITH)):
            label = "with BN" if norm else "without BN"
            curve(panel, chosen(runs, norm=norm), metric, label=label, color=colour)
        finish(panel, title=title, xlabel="step")


def moved(run: Run) -> float:
    """The movement of the layers' inputs from one measurement to the next, averaged over layers and steps."""
    values = [value for name, points in run.curves.items() if name.endswith("/moved") for _, value in points]
    return mean(values) if values else float("nan")


def average(run: Run, metric: str) -> float:
    values = [value for _, value in run.curves.get(metric, ())]
    return mean(values) if values else float("nan")


def table(runs: Runs) -> tuple[list[str], list[list[str]]]:
    rows = []
    for norm in (False, True):
        of = chosen(runs, norm=norm)
        rows.append(
            [
                "with BN" if norm else "without BN",
                spread(of, moved).text("{:.3f}".format),
                spread(of, lambda run: average(run, CHANGE)).text("{:.3f}".format),
                spread(of, lambda run: average(run, SMOOTHNESS)).text("{:.3f}".format),
                spread(of, lambda run: run.last("test_accuracy")).text(percent),
            ]
        )
    return [
        "network",
        "movement of the inputs, in standard deviations",
        "relative change of the gradient",
        "change of the gradient per distance",
        "test accuracy",
    ], rows


def claims(runs: Runs) -> list[Claim]:
    with_norm, without = chosen(runs, norm=True), chosen(runs, norm=False)

    def smaller(statement: str, what: str, figure: Any) -> Claim:
        ours, other = spread(with_norm, figure), spread(without, figure)
        return Claim(
            statement=statement,
            holds=ours.middle < other.middle,
            evidence=f"{what}: {ours.text('{:.3f}'.format)} with BN, {other.text('{:.3f}'.format)} without.",
        )

    return [
        smaller(
            "With BN the distributions of the layers' inputs move less (Ioffe & Szegedy).",
            "Movement between two measurements, in standard deviations",
            moved,
        ),
        smaller(
            "With BN the gradient changes less along a step (Santurkar et al.).",
            "Relative change, averaged over the training",
            lambda run: average(run, CHANGE),
        ),
    ]


SHIFT = Experiment(
    name="shift",
    title="Internal covariate shift, and the smoothness of the loss",
    paper="Ioffe & Szegedy (2015), section 2, define “Internal Covariate Shift as the change in the "
    "distribution of network activations due to the change in network parameters during training”, and "
    "expect faster training from less of it. **The later literature doubts this explanation**: Santurkar "
    "et al. (2018), “How Does Batch Normalization Help Optimization?”, find no less shift with BN, "
    "networks that train as fast with noise that increases the shift, and a smoother loss instead: along a "
    "step the gradient changes less. Both are measured here in the same runs.",
    recipes=("shift",),
    metrics=("input/", "gradient/", "test_accuracy"),
    quick={
        "shift": Quick(settings=("training.max_steps=100", "data.init_args.limit=1500")),
    },
    claims=claims,
    table=table,
    drawings={
        "moments": Drawing(
            caption="Mean and standard deviation of each hidden layer's sigmoid input, over 500 test "
            "images and all units, in one run each.",
            draw=draw_moments,
            size=(9.0, 5.5),
        ),
        "gradients": Drawing(
            caption="How far the gradient changes along up to four steps of the learning rate: the largest "
            "change relative to the gradient, and per distance. Medians over the seeds, and the range.",
            draw=draw_gradients,
            size=(9.0, 3.6),
        ),
    },
    notes=(
        "Five hidden layers of 100 sigmoids on Fashion-MNIST. Distributions and gradients are those of a "
        "copy of the network on 500 test images, by which BN normalises there; the training does not "
        "notice.",
        "That a run's shift is smaller, or its gradient smoother, does not say that it is the cause of "
        "anything.",
    ),
)
