"""The runs of an experiment as MLflow has them, and figures over their seeds."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from mlflow import MlflowClient

from benchmarks.paper.points import DIGEST, EXPERIMENT, Point

Curve = Sequence[tuple[int, float]]
"""(step, value), by step."""

DIVERGED, MACHINE, COMMAND = "paper.diverged", "paper.machine", "paper.command"
"""Tags that this program gives to the runs, so that a page can be written from MLflow alone."""


class Missing(RuntimeError):
    """MLflow lacks runs of the experiment."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training.

    values: of the sweep's keys, and of other keys that the sweep's points differ in. curves: metrics by name.
    seconds: from the run's begin in MLflow to its end. diverged: its loss became infinite or NaN.
    """

    recipe: str
    values: Mapping[str, Any]
    seed: int
    workers: int
    curves: Mapping[str, Curve]
    seconds: float = 0.0
    diverged: bool = False
    tags: Mapping[str, str] = field(default_factory=dict)

    def last(self, metric: str) -> float:
        """The last value; NaN if there is none."""
        curve = self.curves.get(metric, ())
        return curve[-1][1] if curve else math.nan

    def middle(self, metric: str) -> float:
        """The median of the values; NaN if there is none."""
        values = [value for _, value in self.curves.get(metric, ())]
        return median(values) if values else math.nan

    def highest(self, metric: str) -> float:
        return max((value for _, value in self.curves.get(metric, ())), default=math.nan)

    def step_that_reaches(self, metric: str, value: float) -> int | None:
        """The first step with at least this value; None: never."""
        return next((step for step, each in self.curves.get(metric, ()) if each >= value), None)


@dataclass(frozen=True, kw_only=True)
class Spread:
    """A figure over the seeds. Without a value it is empty: `middle`, `least` and `most` are NaN."""

    values: Sequence[float]

    @property
    def middle(self) -> float:
        return median(self.values) if self.values else math.nan

    @property
    def least(self) -> float:
        return min(self.values, default=math.nan)

    @property
    def most(self) -> float:
        return max(self.values, default=math.nan)

    def text(self, form: Callable[[float], str]) -> str:
        """As `92.1 (91.8 to 92.3)`; without the range if there is only one value."""
        if len(self.values) < 2:
            return form(self.middle)
        return f"{form(self.middle)} ({form(self.least)} to {form(self.most)})"


def spread(runs: Iterable[Run], figure: Callable[[Run], float | None]) -> Spread:
    """Returns a figure over runs; those for which it is None or NaN are left out."""
    found = (figure(run) for run in runs)
    return Spread(values=[value for value in found if value is not None and not math.isnan(value)])


def chosen(runs: Iterable[Run], **values: Any) -> list[Run]:
    """Returns the runs with these values. A key is given by its last part: norm=True, depth=3."""
    return [run for run in runs if all(value_of(run, key) == value for key, value in values.items())]


def value_of(run: Run, key: str) -> Any:
    return next((value for path, value in run.values.items() if path.rpartition(".")[2] == key), None)


def merged(runs: Sequence[Run], metric: str) -> Sequence[tuple[int, Spread]]:
    """Returns the metric's spread over the runs at each step that at least one of them has."""
    by_step: dict[int, list[float]] = {}
    for run in runs:
        for step, value in run.curves.get(metric, ()):
            by_step.setdefault(step, []).append(value)
    return [(step, Spread(values=by_step[step])) for step in sorted(by_step)]


def read(uri: str, points: Sequence[Point], metrics: Sequence[str]) -> list[Run]:
    """Returns the latest ended run of each point, with the metrics that begin with one of `metrics`.

    Raises Missing if MLflow at `uri` has none of a point.
    """
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    found = [_latest(client, experiment.experiment_id, point) if experiment else None for point in points]
    if missing := sum(each is None for each in found):
        raise Missing(f"MLflow at {uri} has {len(points) - missing} of the {len(points)} runs")
    return [
        _run(client, each, point, metrics)
        for each, point in zip(found, points, strict=True)
        if each is not None
    ]


def _latest(client: MlflowClient, experiment_id: str, point: Point) -> Any:
    found = client.search_runs(
        [experiment_id], f"tags.`{DIGEST}` = '{point.digest}'", order_by=["attributes.start_time DESC"]
    )
    ended = (run for run in found if run.info.status == "FINISHED" or DIVERGED in run.data.tags)
    return next(ended, None)


def _run(client: MlflowClient, found: Any, point: Point, metrics: Sequence[str]) -> Run:
    names = [name for name in found.data.metrics if name.startswith(tuple(metrics))]
    curves = {name: _curve(client.get_metric_history(found.info.run_id, name)) for name in names}
    return Run(
        recipe=point.recipe,
        values=point.values,
        seed=point.seed,
        workers=point.workers,
        curves=curves,
        seconds=((found.info.end_time or found.info.start_time) - found.info.start_time) / 1000,
        diverged=DIVERGED in found.data.tags,
        tags=dict(found.data.tags),
    )


def _curve(history: Iterable[Any]) -> Curve:
    """The value of a step that was logged again, after an interruption, is the last one."""
    by_step = {point.step: point.value for point in sorted(history, key=lambda point: point.timestamp)}
    return sorted(by_step.items())
