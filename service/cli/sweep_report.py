"""A report on a sweep as blocks of text, tables and figures. The same results give the same report.

So there are no ids in it, no times, no hosts, and nothing of the order in which jobs ran.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import yaml

from service.cli.comparison import Comparison, Group, Trial
from service.cli.output import clean, metric, number
from service.cli.sweep_text import value_text
from service.client import Sweep, SweepPoint
from service.differences import Spread, short_keys
from training.metric_names import Mode

_SEED = "training.seed"
_NOT_IN_THE_SPEC = {"name", "labels", "source", "priority", "retries", "tracking"}
_NO_RESULT = {"failed", "cancelled"}
_BEST_OF = "val_"


@dataclass(frozen=True, kw_only=True)
class Heading:
    """A heading."""

    text: str
    level: int = 2


@dataclass(frozen=True, kw_only=True)
class Paragraph:
    """A paragraph of plain text."""

    text: str


@dataclass(frozen=True, kw_only=True)
class Rows:
    """A table: the names of its columns, and its rows."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True, kw_only=True)
class Code:
    """Text to show as it is."""

    text: str


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A figure, as PNG. title: what it shows."""

    title: str
    png: bytes


Block = Heading | Paragraph | Rows | Code | Picture


@dataclass(frozen=True, kw_only=True)
class Arm:
    """The points of a sweep that differ in their seed at most.

    values: of the other keys. group: their jobs with their metrics, without those that failed or were
    cancelled: what these have reached is no result.
    """

    values: Mapping[str, Any]
    points: Sequence[SweepPoint]
    group: Group


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What a sweep has found. trials: the job of each of its points, with its metrics."""

    sweep: Sweep
    trials: Sequence[Trial]
    metrics: Sequence[str]
    draw: Callable[[Findings], Iterable[Picture]] = field(repr=False)

    @cached_property
    def keys(self) -> list[str]:
        """The swept keys, without the seed."""
        return [key for key in self.sweep.keys if key != _SEED]

    @cached_property
    def names(self) -> dict[str, str]:
        """A short name for each of the swept keys."""
        return short_keys(self.sweep.keys)

    @cached_property
    def arms(self) -> list[Arm]:
        """The points by their values, in order of the first of each."""
        found: dict[str, list[tuple[SweepPoint, Trial]]] = {}
        for point, trial in zip(self.sweep.points, self.trials, strict=True):
            found.setdefault(same(point.values, without=_SEED), []).append((point, trial))
        return [
            Arm(
                values={key: value for key, value in pairs[0][0].values.items() if key != _SEED},
                points=[point for point, _ in pairs],
                group=Group(
                    number=number, trials=[trial for point, trial in pairs if point.state not in _NO_RESULT]
                ),
            )
            for number, pairs in enumerate(found.values(), 1)
        ]

    @cached_property
    def comparison(self) -> Comparison:
        """The arms that have run, for figures of their curves."""
        ran = [arm.group for arm in self.arms if any(trial.points for trial in arm.group.trials)]
        return Comparison(groups=ran, metrics=self.metrics)

    @cached_property
    def objective(self) -> str | None:
        """The metric by which arms are ranked: the one that chooses the best checkpoint, if it is known."""
        monitors = [trial.values.get("training.checkpoint.monitor") for trial in self.trials]
        ranked = [name for name in self.metrics if self.mode(name)]
        return next((name for name in [*monitors[:1], *ranked] if name in ranked), None)

    @cached_property
    def ranked(self) -> list[Arm]:
        """The arms by their objective, the best first; those without a value are left out."""
        objective = self.objective
        if objective is None:
            return []
        sign = -1 if self.mode(objective) == "max" else 1
        scores = [(self.score(arm, objective), arm) for arm in self.arms]
        known = [
            (sign * score.mean, arm.group.number, arm)
            for score, arm in scores
            if score and score.mean is not None
        ]
        return [arm for *_, arm in sorted(known, key=lambda each: each[:2])]

    def mode(self, name: str) -> Mode | None:
        """Returns which value of a metric is the best; None: not known."""
        return self.trials[0].mode(name)

    def score(self, arm: Arm, name: str) -> Spread | None:
        """Returns an arm's value of a metric: the best of a metric of validation, the last of others."""
        return arm.group.best(name) if self.shows_best(name) else arm.group.last(name)

    def shows_best(self, name: str) -> bool:
        """Returns whether the best value of a metric counts, not the last."""
        return name.startswith(_BEST_OF) and self.mode(name) is not None

    def label(self, values: Mapping[str, Any]) -> str:
        """Returns values on one line, without the seed, as in lr=0.1, width=8."""
        return ", ".join(
            f"{self.names[key]}={value_text(value)}" for key, value in values.items() if key != _SEED
        )


def same(values: Mapping[str, Any], *, without: str) -> str:
    """Returns a text that is the same for values that are equal but for one key."""
    return json.dumps({key: value for key, value in values.items() if key != without})


def blocks(findings: Findings) -> Iterator[Block]:
    """Yields the report."""
    sweep = findings.sweep
    yield Heading(text=f"Sweep {clean(sweep.name)}", level=1)
    yield Paragraph(text=_summary(findings))
    yield Heading(text="Question")
    yield Rows(columns=["key", "values"], rows=list(_question(sweep)))
    yield Heading(text="Results")
    yield Paragraph(text=_how_to_read(findings))
    yield _results(findings)
    if rows := list(_unfinished(findings)):
        yield Heading(text="Without a result")
        yield Rows(columns=["point", *findings.names.values(), "state", "why"], rows=rows)
    for picture in findings.draw(findings):
        yield Heading(text=picture.title)
        yield picture
    yield Heading(text="Spec of the first point")
    yield Code(text=_spec(findings.trials[0].job.spec))


def _summary(findings: Findings) -> str:
    sweep, objective = findings.sweep, findings.objective
    text = f"{sweep.jobs} jobs: {', '.join(f'{count} {state}' for state, count in sweep.counts.items())}."
    if not findings.ranked or objective is None:
        return text
    best = findings.ranked[0]
    which = {"min": "lowest", "max": "highest"}[findings.mode(objective) or "min"]
    where = findings.label(best.values) or "the spec as it is"
    return f"{text} The {which} {objective}: {_shown(findings.score(best, objective))}, with {where}."


def _question(sweep: Sweep) -> Iterator[list[str]]:
    grid, random, repeat = (sweep.plan.get(key) for key in ("grid", "random", "repeat"))
    for key, values in (grid or {}).items():
        yield [key, ", ".join(map(value_text, values))]
    draws: Mapping[str, Any] = random or {}
    for key, space in draws.get("space", {}).items():
        text = ", ".join(map(value_text, space)) if isinstance(space, list) else _range(space)
        yield [key, f"{draws['count']} draws (seed {draws['seed']}) from {text}"]
    if repeat is not None:
        seeds = dict.fromkeys(point.values[_SEED] for point in sweep.points)
        yield [_SEED, ", ".join(map(str, seeds))]


def _range(space: Mapping[str, Any]) -> str:
    scale = ", evenly on a logarithmic scale" if space.get("log") else ""
    return f"{space['min']} to {space['max']}{scale}"


def _how_to_read(findings: Findings) -> str:
    text = "Last values"
    if any(map(findings.shows_best, findings.metrics)):
        text += "; of metrics of validation also the best"
    if any(len(arm.points) > 1 for arm in findings.arms):
        text += ". The mean over the seeds ± the sample standard deviation"
    return f"{text}."


def _results(findings: Findings) -> Rows:
    columns = ["#", *(findings.names[key] for key in findings.keys), "jobs"]
    for name in findings.metrics:
        columns += [name, f"best {name}"] if findings.shows_best(name) else [name]
    return Rows(columns=columns, rows=[_row(findings, arm) for arm in findings.arms])


def _row(findings: Findings, arm: Arm) -> list[str]:
    ended = sum(point.state == "succeeded" for point in arm.points)
    jobs = str(ended) if ended == len(arm.points) else f"{ended} of {len(arm.points)}"
    cells = [str(arm.group.number), *(value_text(arm.values[key]) for key in findings.keys), jobs]
    for name in findings.metrics:
        cells.append(_shown(arm.group.last(name)))
        if findings.shows_best(name):
            cells.append(_shown(arm.group.best(name)))
    return cells


def _shown(spread: Spread | None) -> str:
    if spread is None:
        return "-"
    if spread.mean is None or spread.deviation is None:
        return metric(spread.mean)
    return f"{number(spread.mean)} ± {spread.deviation:.2g}"


def _unfinished(findings: Findings) -> Iterator[list[str]]:
    for point, trial in zip(findings.sweep.points, findings.trials, strict=True):
        if point.state != "succeeded":
            values = [value_text(point.values.get(key, "")) for key in findings.names]
            yield [str(point.number), *values, point.state, _why(trial)]


def _why(trial: Trial) -> str:
    """Returns why a job has failed, without what differs from try to try: ids, hosts, the rank's log."""
    error = trial.job.error
    if error is None:
        return ""
    step = "" if error.step is None else f" at step {error.step}"
    message = clean(error.message.partition("\n")[0])
    return ": ".join(filter(None, [f"{error.type or 'error'}{step}", message]))


def _spec(spec: Mapping[str, Any]) -> str:
    shown = {key: value for key, value in spec.items() if key not in _NOT_IN_THE_SPEC}
    return yaml.safe_dump(_without_empty(shown), sort_keys=False, allow_unicode=True).rstrip()


def _without_empty(value: Any) -> Any:
    """Returns a spec without its keys that are null or empty."""
    if not isinstance(value, Mapping):
        return value
    return {key: _without_empty(each) for key, each in value.items() if each not in (None, {}, [])}
