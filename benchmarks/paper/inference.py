"""Section 3.1: the statistics for inference, from more and more batches."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from benchmarks.paper.drawing import band, finish, percent
from benchmarks.paper.experiment import Claim, Drawing, Experiment, Runs
from benchmarks.paper.points import Quick
from benchmarks.paper.runs import Run, Spread, spread

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAMES = {
    "running": "running averages, momentum 0.1",
    "mean": "mean over the batches",
    "precise": "precise_bn",
}
CLOSE = 0.01
"""Within this much of the error with precise_bn over all batches, an error counts as reached."""


def errors(runs: Runs, source: str) -> dict[int, Spread]:
    """Returns the test error by the number of batches that the statistics have seen."""
    begin = f"statistics/{source}/"
    counts = {int(name.removeprefix(begin)) for run in runs for name in run.curves if name.startswith(begin)}

    def error(run: Run, count: int) -> float:
        return run.last(f"{begin}{count}")

    return {count: spread(runs, partial(error, count=count)) for count in sorted(counts)}


def of_the_training(runs: Runs) -> Spread:
    return spread(runs, lambda run: run.last("statistics/training"))


def batches_needed(runs: Runs, source: str) -> int | None:
    """Returns the number of batches from which on the median error is close to precise_bn's over all."""
    precise = errors(runs, "precise")
    goal, needed = precise[max(precise)].middle + CLOSE, None
    for count, found in sorted(errors(runs, source).items(), reverse=True):
        if found.middle > goal:
            break
        needed = count
    return needed


def draw(runs: Runs, figure: Figure) -> None:
    axes = figure.add_subplot(xscale="log")
    for source, name in NAMES.items():
        band(axes, list(errors(runs, source).items()), label=name, marker="o")
    axes.axhline(of_the_training(runs).middle, color="0.5", linewidth=0.8, label="the training's own")
    finish(axes, xlabel="batches that the statistics have seen", ylabel="test error", ylim=(0, None))


def table(runs: Runs) -> tuple[list[str], list[list[str]]]:
    by_source = {source: errors(runs, source) for source in NAMES}
    rows = [
        [str(count), *(by_source[source][count].text(percent) for source in NAMES)]
        for count in by_source["running"]
    ]
    return ["batches", *NAMES.values()], rows


def claims(runs: Runs) -> list[Claim]:
    by_source = {source: errors(runs, source) for source in NAMES}
    count = max(by_source["running"])
    own, precise = of_the_training(runs), by_source["precise"][count]
    needed = {source: batches_needed(runs, source) for source in NAMES}
    return [
        Claim(
            statement="Running averages follow the population's statistics well enough for inference.",
            holds=own.middle <= precise.middle + CLOSE,
            evidence=f"Test error {own.text(percent)} with the training's own, {precise.text(percent)} with "
            f"precise_bn over {count} batches.",
        ),
        Claim(
            statement="The mean over the batches (Algorithm 2) needs fewer batches than running averages.",
            holds=_at_most(needed["mean"], needed["running"]),
            evidence=f"Within {percent(CLOSE)} of the latter: mean {_batches(needed['mean'])}, "
            f"running averages {_batches(needed['running'])}, precise_bn {_batches(needed['precise'])}.",
        ),
    ]


def _at_most(one: int | None, other: int | None) -> bool:
    return one is not None and (other is None or one < other)


def _batches(count: int | None) -> str:
    return "not reached" if count is None else f"from {count} on"


INFERENCE = Experiment(
    name="inference",
    title="Inference: statistics from more and more batches",
    paper="Ioffe & Szegedy (2015), section 3.1: in inference BN uses the population's statistics, the mean "
    "over training batches with the unbiased variance Var[x] = m/(m-1)·E[σ²]; “using moving averages "
    "instead, we can track the accuracy of a model as it trains”. `sync_bn.precise_bn` computes them after "
    "the training (Wu & Johnson 2021, section 3).",
    recipes=("inference",),
    metrics=("statistics/",),
    quick={
        "inference": Quick(
            settings=("training.max_steps=60", "data.init_args.limit=1500"),
        )
    },
    claims=claims,
    table=table,
    drawings={
        "error": Drawing(
            caption="Test error of one trained network against the number of batches of 60 from which its "
            "statistics come. The line is the median over the seeds, the band the range.",
            draw=draw,
            size=(7.5, 4.2),
        )
    },
    notes=(
        "The weights are the final ones, only the statistics begin anew, and each batch is shared by two "
        "workers. The mean and precise_bn differ in that precise_bn counts the batches as one population: "
        "the variance of the batches' means belongs to it.",
        f"The threshold is ours, not the paper's: an error counts as close within {100 * CLOSE:g} "
        "percentage point.",
    ),
)
