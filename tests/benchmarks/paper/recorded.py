"""Runs of experiments as if MLflow had them: every point of the full size, with curves that a test makes."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from benchmarks.paper.experiment import Experiment
from benchmarks.paper.points import Point
from benchmarks.paper.runs import COMMAND, MACHINE, Curve, Run

LAYERS = ("hidden.0.activation", "hidden.1.activation")
NAMES = (
    *("val_accuracy", "test_accuracy", "test_dice", "gradient/change", "gradient/smoothness"),
    *(f"input/percentile_{percentile}" for percentile in (15, 50, 85)),
    *(f"input/{layer}/{measure}" for layer in LAYERS for measure in ("mean", "std", "moved")),
    *("folded/difference", "folded/layers", "folded/remaining", "identity/stem.norm"),
    *(f"statistics/{source}/{count}" for source in ("running", "mean", "precise") for count in (1, 10)),
    "statistics/training",
    *(
        f"noise/{arrangement}/{measure}/{group}"
        for arrangement in ("random", "sorted", "balanced")
        for measure in ("mean", "var")
        for group in (2, 8, 32)
    ),
)


def recorded(
    experiment: Experiment,
    curve: Callable[[Point, str], Curve],
    diverged: Callable[[Point], bool] = lambda _: False,
) -> list[Run]:
    """curve: (step, value) of a metric in the run of a point. diverged: whether that run did."""
    return [
        Run(
            recipe=point.recipe,
            values=point.values,
            seed=point.seed,
            workers=point.workers,
            curves=_curves(experiment, point, curve),
            seconds=10.0 + point.seed,
            diverged=diverged(point),
            tags={
                MACHINE: "CPU of a test, cores 2",
                COMMAND: f"python -m benchmarks.paper {experiment.name}",
            },
        )
        for point in experiment.points(quick=False)
    ]


def _curves(
    experiment: Experiment, point: Point, curve: Callable[[Point, str], Curve]
) -> Mapping[str, Curve]:
    return {name: curve(point, name) for name in NAMES if name.startswith(tuple(experiment.metrics))}


def norm_of(point: Point) -> bool:
    return bool(point.values.get("model.init_args.norm", True))
