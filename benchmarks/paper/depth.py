"""Sections 1 and 2: saturating units in networks of growing depth."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.paper.drawing import WITH, WITHOUT, band, finish, percent
from benchmarks.paper.experiment import Claim, Drawing, Experiment, Runs
from benchmarks.paper.initialisation import accuracy
from benchmarks.paper.points import Quick
from benchmarks.paper.runs import Spread, chosen, spread, value_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TRAINS = 0.5
"""The part of the shallowest network's accuracy above which the deepest one counts as trained."""


def by_depth(runs: Runs, *, norm: bool) -> list[tuple[int, Spread]]:
    of = chosen(runs, norm=norm)
    depths = sorted({value_of(run, "depth") for run in of})
    return [(depth, spread(chosen(of, depth=depth), accuracy)) for depth in depths]


def draw(runs: Runs, figure: Figure) -> None:
    axes = figure.add_subplot(xscale="log")
    for norm, colour in ((True, WITH), (False, WITHOUT)):
        label = "with BN" if norm else "without BN"
        band(axes, by_depth(runs, norm=norm), label=label, color=colour, marker="o")
    depths = [depth for depth, _ in by_depth(runs, norm=True)]
    axes.set_xticks(depths, [str(depth) for depth in depths])
    axes.minorticks_off()
    finish(axes, xlabel="hidden layers", ylabel="test accuracy", ylim=(0, 1))


def table(runs: Runs) -> tuple[list[str], list[list[str]]]:
    without = dict(by_depth(runs, norm=False))
    rows = [
        [str(depth), found.text(percent), without[depth].text(percent)]
        for depth, found in by_depth(runs, norm=True)
    ]
    return ["hidden layers", "test accuracy with BN", "without BN"], rows


def claims(runs: Runs) -> list[Claim]:
    with_norm, without = by_depth(runs, norm=True), by_depth(runs, norm=False)
    depth = with_norm[-1][0]
    lost = [found[0][1].middle - found[-1][1].middle for found in (with_norm, without)]
    return [
        Claim(
            statement="With BN, a deep network of saturating units trains.",
            holds=with_norm[-1][1].middle > TRAINS * with_norm[0][1].middle,
            evidence=f"With {depth} hidden layers the test accuracy was "
            f"{with_norm[-1][1].text(percent)}, and {with_norm[0][1].text(percent)} with {with_norm[0][0]}.",
        ),
        Claim(
            statement="Depth costs the network without BN more.",
            holds=lost[1] > lost[0],
            evidence=f"From {with_norm[0][0]} to {depth} hidden layers it lost {percent(lost[1])} of "
            f"accuracy, with BN {percent(lost[0])}; at {depth} it had {without[-1][1].text(percent)}.",
        ),
    ]


DEPTH = Experiment(
    name="depth",
    title="Depth: networks of sigmoids",
    paper="Ioffe & Szegedy (2015), section 1: small changes “amplify as the network becomes deeper”, and "
    "move units “into the saturated regime of the nonlinearity and slow down the convergence. This effect "
    "is amplified as the network depth increases”; BN “makes it possible to use saturating nonlinearities "
    "by preventing the network from getting stuck in the saturated modes”.",
    recipes=("depth",),
    metrics=("test_accuracy",),
    quick={
        "depth": Quick(
            settings=("training.max_steps=60", "data.init_args.limit=1500"),
            grid={"model.init_args.depth": [1, 4]},
        )
    },
    claims=claims,
    table=table,
    drawings={
        "accuracy": Drawing(
            caption="Test accuracy against the number of hidden layers of 100 sigmoids. The line is the "
            "median over the seeds, the band the range.",
            draw=draw,
            size=(7.0, 4.0),
        )
    },
    notes=(
        "Fashion-MNIST, one epoch, SGD with momentum, initial weights of He et al. (2015).",
        f"The threshold is ours, not the paper's: above {percent(TRAINS)} of the shallowest network's "
        "accuracy, the deepest one counts as trained.",
    ),
)
