"""A comparison of jobs: which parameters differ, and the last and best values of their metrics. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from service import differences
from service.client import Job, Point
from service.differences import Spread
from training.metric_names import Mode


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A job and its points of each metric, in order of steps."""

    job: Job
    points: Mapping[str, Sequence[Point]] = field(default_factory=dict)

    @cached_property
    def values(self) -> dict[str, Any]:
        """Every value of the spec that is neither null nor an empty mapping, by its dotted key."""
        return differences.values_of(self.job.spec)

    def mode(self, metric: str) -> Mode | None:
        """Returns which value of the metric is the best: as the spec says, else as its name does."""
        return differences.mode_of(self.values, metric)

    def last(self, metric: str) -> Point | None:
        return self.points[metric][-1] if self.points.get(metric) else None

    def best(self, metric: str) -> Point | None:
        """Returns the first of the best points; None if none is finite, or if the best is not known."""
        mode = self.mode(metric)
        finite = [(point.value, point) for point in self.points.get(metric, ()) if point.value is not None]
        if mode is None or not finite:
            return None
        choose = min if mode == "min" else max
        return choose(finite, key=lambda pair: pair[0])[1]


@dataclass(frozen=True, kw_only=True)
class Group:
    """Jobs that differ in their seed at most. number: from 1, in order of the comparison."""

    number: int
    trials: Sequence[Trial]

    def value(self, key: str) -> list[Any]:
        """Returns the different values of a key of the spec, in order of the jobs that have it."""
        found = [trial.values[key] for trial in self.trials if key in trial.values]
        return [value for i, value in enumerate(found) if value not in found[:i]]

    def mode(self, metric: str) -> Mode | None:
        return self.trials[0].mode(metric)

    def last(self, metric: str) -> Spread | None:
        """Returns the last value; None if no job has the metric."""
        return _spread([trial.last(metric) for trial in self.trials])

    def best(self, metric: str) -> Spread | None:
        """Returns the best value; None if no job has one."""
        return _spread([trial.best(metric) for trial in self.trials])

    def best_steps(self, metric: str) -> list[int]:
        """Returns the step of each job's best value."""
        return [point.step for trial in self.trials if (point := trial.best(metric))]

    def curve(self, metric: str) -> list[tuple[int, Spread]]:
        """Returns the values at each step at which a job has one that is finite."""
        at: dict[int, list[float]] = {}
        for trial in self.trials:
            for point in trial.points.get(metric, ()):
                if point.value is not None:
                    at.setdefault(point.step, []).append(point.value)
        return [(step, Spread.of(values)) for step, values in sorted(at.items())]


def _spread(points: Iterable[Point | None]) -> Spread | None:
    values = [point.value for point in points if point is not None]
    return Spread.of(values) if values else None


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Groups of jobs, the metrics to show in this order, and sentences about jobs that are left out."""

    groups: Sequence[Group]
    metrics: Sequence[str]
    notes: Sequence[str] = ()

    @cached_property
    def differing(self) -> list[str]:
        """The dotted keys of the spec whose values are not the same in all jobs, in order of the spec."""
        trials = [trial for group in self.groups for trial in group.trials]
        sections = list(dict.fromkeys(section for trial in trials for section in trial.job.spec))
        return differences.differing([trial.values for trial in trials], sections)

    @cached_property
    def weights(self) -> dict[str, str]:
        """By a job's id whether its weights are those of the first job that has any: see `weights_of`."""
        jobs = [trial.job for group in self.groups for trial in group.trials]
        found = differences.weights_of([job.weights_sha256 for job in jobs])
        return {job.id: text for job, text in zip(jobs, found, strict=True)}

    def to_json(self) -> dict[str, Any]:
        """Returns the comparison as JSON; numbers that are not finite are null."""
        return {
            "parameters": self.differing,
            "groups": [self._group(group) for group in self.groups],
            "notes": list(self.notes),
        }

    def _group(self, group: Group) -> dict[str, Any]:
        metrics = {metric: _metric(group, metric) for metric in self.metrics if group.last(metric)}
        return {"jobs": [self._trial(trial) for trial in group.trials], "metrics": metrics}

    def _trial(self, trial: Trial) -> dict[str, Any]:
        job = trial.job
        return {
            "id": job.id,
            "name": job.name,
            "state": job.state,
            "weights_sha256": job.weights_sha256,
            "parameters": {key: trial.values.get(key) for key in self.differing},
            "metrics": {
                metric: {"last": _point(last), "best": _point(trial.best(metric))}
                for metric in self.metrics
                if (last := trial.last(metric))
            },
        }


def _metric(group: Group, metric: str) -> dict[str, Any]:
    last, best = group.last(metric), group.best(metric)
    return {
        "mode": group.mode(metric),
        "last": last and last._asdict(),
        "best": best and best._asdict(),
    }


def _point(point: Point | None) -> dict[str, Any] | None:
    return None if point is None else {"value": point.value, "step": point.step}


def groups_of(trials: Iterable[Trial]) -> list[Group]:
    """Returns the trials in groups that differ in nothing of the training but the seed, in their order."""
    found: dict[str, list[Trial]] = {}
    for trial in trials:
        found.setdefault(differences.training_of(trial.values), []).append(trial)
    return [Group(number=number, trials=group) for number, group in enumerate(found.values(), 1)]
