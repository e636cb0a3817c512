"""Sweeps: one spec with several values for some of its keys, expanded into the specs of its points. Pure."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from random import Random
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from training.spec.errors import MAX_PROBLEMS, Problem, SpecError
from training.spec.model import Spec, read_spec
from training.spec.parts import Part
from training.spec.text import replaced

MAX_POINTS = 1_000
MAX_BYTES = 2**26
"""Limits of one sweep: its points, and their specs together as JSON."""

MAX_KEYS = 100
_MAX_PARTS = 20
"""Limits of the keys of a sweep: their number, and the parts of each."""

SEED = "training.seed"
_LIGHTNINGS_SEED = "seed_everything"
_NOT_SWEPT = {
    "name": "the points are named after the sweep, NAME-1, NAME-2 and so on",
    "tracking.experiment": "all runs of a sweep are in one experiment",
    "source": "all points come from one source",
    "code": "all points run the same code",
    "sweep": "is not a key of a spec",
}
_DIGITS = 6

Key = Annotated[str, Field(max_length=500)]
Values = Annotated[list[Any], Field(min_length=1, max_length=MAX_POINTS)]


class ValueRange(Part):
    """Values from `min` to `max`, both included; integers if both are integers."""

    min: int | float
    max: int | float
    log: bool = Field(default=False, description="Draws evenly on a logarithmic scale")

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"min is {self.min:g}, and max is {self.max:g}, which is less")
        if self.log and self.min <= 0:
            raise ValueError(f"a logarithmic scale has positive values only, and min is {self.min:g}")
        if not math.isfinite(self.max / self.min if self.log else float(self.max) - float(self.min)):
            raise ValueError(f"the range from {self.min:g} to {self.max:g} is too large to draw from")
        return self

    def at(self, share: float) -> int | float:
        """Returns the value at a share of the range, at least 0 and less than 1.

        A number that is not an integer has six digits: then math libraries that differ in the last bit give
        the same one.
        """
        whole = isinstance(self.min, int) and isinstance(self.max, int)
        low, high = self.min, self.max + whole
        value = low * (high / low) ** share if self.log else low + share * (high - low)
        value = math.floor(value) if whole else float(f"{value:.{_DIGITS}g}")
        return min(max(value, self.min), self.max)


class RandomPoints(Part):
    """Points drawn at random. The same seed draws the same values on every machine."""

    count: int = Field(ge=1, le=MAX_POINTS, description="Number of draws; equal ones are one point")
    seed: int = Field(default=0, description="Of the draws, not of the training")
    space: dict[Key, Values | ValueRange] = Field(
        min_length=1,
        max_length=MAX_KEYS,
        description="By dotted key: values to choose from, or a range {min, max, log}",
    )

    def draws(self) -> Iterator[dict[str, Any]]:
        """Yields the values of each draw. A key's draws depend on no other key, and not on `count`."""
        # Random.random is the one method whose sequence Python promises to keep; text seeds it by SHA-512.
        generators = {key: Random(f"{self.seed} {key}") for key in self.space}
        for _ in range(self.count):
            yield {key: _drawn(self.space[key], each.random()) for key, each in generators.items()}


def _drawn(space: list[Any] | ValueRange, share: float) -> Any:
    return space.at(share) if isinstance(space, ValueRange) else space[int(share * len(space))]


class SweepPlan(Part):
    """Which values a sweep tries. Its points are grid × random × repeat."""

    grid: dict[Key, Values] = Field(
        default_factory=dict,
        max_length=MAX_KEYS,
        description="By dotted key of the spec: its values, in all combinations",
    )
    random: RandomPoints | None = Field(default=None, description="Draws; each with all of the grid")
    repeat: (
        Annotated[int, Field(ge=1, le=MAX_POINTS)]
        | Annotated[list[int], Field(min_length=1, max_length=MAX_POINTS)]
        | None
    ) = Field(
        default=None,
        description="Values of training.seed, or how many: the spec's own and the next ones",
    )
    max_running: int | None = Field(
        default=None, ge=1, description="Maximum number of its jobs that run at once; null: no limit"
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        drawn = self.random.space if self.random else {}
        keys = [*self.grid, *drawn, *([SEED] if self.repeat is not None else [])]
        if not keys:
            raise ValueError("a sweep needs values to try: give grid, random or repeat")
        for number, key in enumerate(keys):
            if not all(key.split(".")):
                raise ValueError(f"{key!r} is not a key; write its parts with one dot between them")
            if key.count(".") >= _MAX_PARTS:
                raise ValueError(f"{key!r} has more than {_MAX_PARTS} parts; set a value of fewer levels")
            for other, why in _NOT_SWEPT.items():
                if _overlap(key, other):
                    raise ValueError(f"{key} cannot be swept: {why}")
            for other in keys[:number]:
                if key == other:
                    raise ValueError(f"{key} is given twice, by grid, random or repeat; give one of them")
                if _overlap(key, other):
                    raise ValueError(f"{other} and {key} set the same key; give one of them")
        return self


def _overlap(key: str, other: str) -> bool:
    """Returns whether one dotted key is the other, or holds it."""
    return f"{key}.".startswith(f"{other}.") or f"{other}.".startswith(f"{key}.")


@dataclass(frozen=True, kw_only=True)
class SweepPoint:
    """One job of a sweep. number: from 1. values: those of the swept keys, by dotted key. spec: complete."""

    number: int
    values: Mapping[str, Any]
    spec: Spec


def expanded(document: object, plan: SweepPlan, *, name: str = "") -> tuple[list[SweepPoint], list[str]]:
    """Returns the points, and what `read_spec` notes about their specs.

    document: the spec before it is validated; a value is set in it as by `override`. name: of the sweep;
    "": the name of the spec. Points with the same spec are one. Raises SpecError for too many points, or if
    any of their specs is not valid.
    """
    if not isinstance(document, Mapping):
        read_spec(document)  # raises the usual error
        raise AssertionError
    _check_size(document, plan)
    points: dict[str, SweepPoint] = {}
    notes: dict[str, None] = {}
    errors: list[tuple[int, Mapping[str, Any], Sequence[Problem]]] = []
    every = list(_values(document, plan))
    for number, values in enumerate(every, 1):
        try:
            spec, more = read_spec(_with_values(document, values))
        except SpecError as error:
            errors.append((number, values, error.problems))
            continue
        notes |= dict.fromkeys(more)
        points.setdefault(_identity(spec), SweepPoint(number=len(points) + 1, values=values, spec=spec))
    if errors:
        raise SpecError(problems_of_points(errors, len(every)))
    return _named(list(points.values()), name), list(notes)


def problems_of_points(
    errors: Iterable[tuple[int, Mapping[str, Any], Sequence[Problem]]], points: int
) -> list[Problem]:
    """Returns each problem once, with the first point that has it unless all `points` have it.

    errors: number, values and problems of points.
    """
    found: dict[Problem, list[tuple[int, Mapping[str, Any]]]] = {}
    for number, values, problems in errors:
        for problem in problems:
            found.setdefault(problem, []).append((number, values))
    problems = [
        problem if len(where) == points and points > 1 else _located(problem, *where[0], len(where) - 1)
        for problem, where in found.items()
    ]
    return problems[:MAX_PROBLEMS]


def _located(problem: Problem, number: int, values: Mapping[str, Any], others: int) -> Problem:
    more = f" and {others} more" if others else ""
    return replace(problem, message=f"{problem.message} (point {number}{more}: {shown_values(values)})")


def shown_values(values: Mapping[str, Any]) -> str:
    """Returns values on one line, as in optimizer.init_args.lr=0.1, training.seed=0."""
    return ", ".join(f"{key}={shown_value(value)}" for key, value in values.items())


def shown_value(value: object) -> str:
    """Returns a value as text: text as it is, others as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _check_size(document: Mapping[str, Any], plan: SweepPlan) -> None:
    count = math.prod(map(len, plan.grid.values()))
    count *= plan.random.count if plan.random else 1
    count *= len(plan.repeat) if isinstance(plan.repeat, list) else plan.repeat or 1
    if count > MAX_POINTS:
        raise SpecError(
            [Problem(key="", message=f"the sweep has {count:,} points; at most {MAX_POINTS:,} are possible")]
        )
    if count * len(json.dumps(document)) > MAX_BYTES:
        message = f"the specs of {count:,} points have more than {MAX_BYTES >> 20} MiB; sweep fewer points"
        raise SpecError([Problem(key="", message=message)])


def _values(document: Mapping[str, Any], plan: SweepPlan) -> Iterator[dict[str, Any]]:
    """Yields the values of each point: seeds change first, then draws, then the grid's last key."""
    grid = (dict(zip(plan.grid, values, strict=True)) for values in product(*plan.grid.values()))
    draws = list(plan.random.draws()) if plan.random else [{}]
    seeds = [{SEED: seed} for seed in _seeds(document, plan.repeat)] or [{}]
    for cell, draw, seed in product(grid, draws, seeds):
        yield {**cell, **draw, **seed}


def _seeds(document: Mapping[str, Any], repeat: int | list[int] | None) -> Sequence[int]:
    if not isinstance(repeat, int):
        return repeat or ()
    training = document.get("training")
    given = training.get("seed") if isinstance(training, Mapping) else document.get(_LIGHTNINGS_SEED)
    first = given if isinstance(given, int) and not isinstance(given, bool) else 0
    return range(first, first + repeat)


def _with_values(document: Mapping[str, Any], values: Mapping[str, Any]) -> object:
    spec: object = document
    for key, value in values.items():
        # A configuration of LightningCLI has its seed at another place, and may not have both.
        is_lightnings = key == SEED and _LIGHTNINGS_SEED in document
        spec = replaced(spec, [_LIGHTNINGS_SEED] if is_lightnings else key.split("."), value)
    return spec


def _identity(spec: Spec) -> str:
    """Returns a text that two specs share if their jobs would do the same."""
    return json.dumps(spec.model_dump(mode="json", exclude={"name", "source"}), sort_keys=True)


def _named(points: Sequence[SweepPoint], name: str) -> list[SweepPoint]:
    name = (name or points[0].spec.name)[:190]
    return [
        replace(point, spec=point.spec.model_copy(update={"name": f"{name}-{point.number}"}))
        for point in points
    ]
