"""Section 3.3: how much the scale of the initial weights matters, with and without BatchNorm."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.paper.drawing import WITH, WITHOUT, band, finish, percent
from benchmarks.paper.experiment import Claim, Drawing, Experiment, Runs
from benchmarks.paper.points import Quick
from benchmarks.paper.runs import Run, Spread, chosen, spread, value_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CHANCE, TRAINS = 0.1, 0.9
"""The accuracy of a guess; the part of the best accuracy from which on a network counts as trained."""


def accuracy(run: Run) -> float:
    return CHANCE if run.diverged else run.last("test_accuracy")


def by_scale(runs: Runs, *, norm: bool) -> list[tuple[float, Spread]]:
    of = chosen(runs, norm=norm)
    scales = sorted({value_of(run, "weight_scale") for run in of})
    return [(scale, spread(chosen(of, weight_scale=scale), accuracy)) for scale in scales]


def trained(runs: Runs, *, norm: bool) -> list[float]:
    """Returns the scales whose median accuracy is at least TRAINS of the best one of all networks."""
    best = max(found.middle for each in (True, False) for _, found in by_scale(runs, norm=each))
    return [scale for scale, found in by_scale(runs, norm=norm) if found.middle >= TRAINS * best]


def draw(runs: Runs, figure: Figure) -> None:
    axes = figure.add_subplot(xscale="log")
    for norm, colour in ((True, WITH), (False, WITHOUT)):
        band(
            axes,
            by_scale(runs, norm=norm),
            label="with BN" if norm else "without BN",
            color=colour,
            marker="o",
        )
    finish(axes, xlabel="scale of the initial weights", ylabel="test accuracy", ylim=(0, 1))


def table(runs: Runs) -> tuple[list[str], list[list[str]]]:
    with_norm, without = dict(by_scale(runs, norm=True)), dict(by_scale(runs, norm=False))
    rows = [
        [
            f"{scale:g}",
            found.text(percent),
            without[scale].text(percent),
            str(sum(run.diverged for run in chosen(runs, norm=False, weight_scale=scale))),
        ]
        for scale, found in with_norm.items()
    ]
    return ["scale", "test accuracy with BN", "without BN", "diverged without BN"], rows


def claims(runs: Runs) -> list[Claim]:
    wide, narrow = trained(runs, norm=True), trained(runs, norm=False)
    return [
        Claim(
            statement="With BN the network trains from a wider range of initial weights.",
            holds=len(wide) > len(narrow),
            evidence=f"It reached {percent(TRAINS)} of the best accuracy from {_listed(wide)} with BN, and "
            f"from {_listed(narrow)} without.",
        )
    ]


def _listed(scales: list[float]) -> str:
    return f"the scales {', '.join(f'{scale:g}' for scale in scales)}" if scales else "none of the scales"


INITIALISATION = Experiment(
    name="initialisation",
    title="The scale of the initial weights",
    paper="Ioffe & Szegedy (2015), section 3.3: “Batch Normalization also makes training more resilient to "
    "the parameter scale”, since BN((aW)u) = BN(Wu), and section 1: it reduces “the dependence of "
    "gradients on the scale of the parameters or of their initial values”.",
    recipes=("initialisation",),
    metrics=("test_accuracy",),
    quick={
        "initialisation": Quick(
            settings=("training.max_steps=60", "data.init_args.limit=1500"),
            grid={"model.init_args.weight_scale": [0.01, 1.0]},
        )
    },
    claims=claims,
    table=table,
    drawings={
        "accuracy": Drawing(
            caption="Test accuracy after the training against the scale of the hidden layers' initial "
            "weights. 1 is He et al.'s (2015). The line is the median over the seeds, the band the range.",
            draw=draw,
            size=(7.0, 4.0),
        )
    },
    notes=(
        "Three hidden layers of 100 rectified units on Fashion-MNIST, one epoch. A network whose loss became "
        f"infinite counts with the accuracy of a guess, {percent(CHANCE)}.",
        f"The threshold is ours, not the paper's: from {percent(TRAINS)} of the best accuracy on, a network "
        "counts as trained.",
    ),
)
