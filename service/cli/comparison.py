"""A comparison of jobs: which parameters differ, and the last and best values of their metrics. Pure."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

from service.client import Job, Point
from training.metric_names import Mode, best_mode

_SEED = "training.seed"
_NOT_TRAINING = ("name", "labels", "source", "priority", "retries", "time_limit")
"""Sections of a spec that change nothing about the training: jobs that differ in them are one group."""


class Spread(NamedTuple):
    """The mean and the sample standard deviation of a value over `jobs` jobs.

    mean: None if the value of a job is not finite. deviation: None for one job.
    """

    mean: float | None
    deviation: float | None
    jobs: int

    @classmethod
    def of(cls, values: Sequence[float | None]) -> Spread:
        finite = [value for value in values if value is not None]
        if len(finite) < len(values):
            return cls(None, None, len(values))
        deviation = statistics.stdev(finite) if len(finite) > 1 else None
        return cls(statistics.fmean(finite), deviation, len(finite))


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A job and its points of each metric, in order of steps."""

    job: Job
    points: Mapping[str, Sequence[Point]] = field(default_factory=dict)

    @cached_property
    def values(self) -> dict[str, Any]:
        """Every value of the spec that is neither null nor an empty mapping, by its dotted key."""
        return dict(_dotted("", self.job.spec))

    def mode(self, metric: str) -> Mode | None:
        """Returns which value of the metric is the best: as the spec says, else as its name does."""
        if self.values.get("training.checkpoint.monitor") == metric:
            mode: Mode = "max" if self.values.get("training.checkpoint.mode") == "max" else "min"
            return mode
        return best_mode(metric)

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


def _dotted(key: str, value: object) -> Iterable[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _dotted(f"{key}.{name}" if key else str(name), inner)
    elif value is not None:
        yield key, value


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
        keys = dict.fromkeys(key for trial in trials for key in trial.values if key != "name")
        sections = list(dict.fromkeys(section for trial in trials for section in trial.job.spec))
        differing = [key for key in keys if len({_text(trial.values.get(key)) for trial in trials}) > 1]
        return sorted(differing, key=lambda key: sections.index(key.partition(".")[0]))

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
        same = {key: value for key, value in trial.values.items() if _distinguishes(key)}
        found.setdefault(_text(same), []).append(trial)
    return [Group(number=number, trials=group) for number, group in enumerate(found.values(), 1)]


def _distinguishes(key: str) -> bool:
    return key != _SEED and key.partition(".")[0] not in _NOT_TRAINING


def _text(value: object) -> str:
    return json.dumps(value, sort_keys=True)
