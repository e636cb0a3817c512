"""Reads a sweep from a request: its plan, and the spec of each point, all checked before any is stored."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from pydantic import ValidationError

from service.api.bodies import SpecText, check_spec, read_document
from service.api.context import Context
from service.api.sweep_schemas import SweepRequest
from service.jobs.job import utc_now
from service.jobs.sweep import Sweep, new_sweep
from service.start_from import resolved
from training.spec import Problem, Spec, SpecError
from training.spec.errors import problems_of
from training.spec.sweep import SweepPoint, expanded, problems_of_points

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class ReadSweep:
    """A valid sweep that is not stored. notes: what is to be said about its specs."""

    sweep: Sweep
    points: Sequence[SweepPoint]
    notes: list[str]


def read_sweep(body: SpecText, services: Context) -> ReadSweep:
    """Returns the sweep in the body. Raises SpecError, which names key and point, if a point is not valid."""
    request = _request(read_document(body))
    points, notes = expanded(request.spec, request.plan, name=request.name)
    found = dict.fromkeys(notes)
    for more in _each(points, _checker(services)):
        found |= dict.fromkeys(more)
    specs = _each(points, lambda spec: resolved(spec, services.store, services.settings))
    points = [replace(point, spec=spec) for point, spec in zip(points, specs, strict=True)]
    name = request.name or points[0].spec.name.rpartition("-")[0]
    sweep = new_sweep(name, request.spec, request.plan, points, created_at=utc_now())
    return ReadSweep(sweep=sweep, points=points, notes=list(found))


def _request(data: object) -> SweepRequest:
    if not isinstance(data, Mapping):
        message = f"a sweep is a mapping with spec and grid, random or repeat, not {type(data).__name__}"
        raise SpecError([Problem(key="", message=message)])
    try:
        return SweepRequest.model_validate(data)
    except ValidationError as error:
        raise SpecError(problems_of(error, SweepRequest)) from None


def _checker(services: Context) -> Callable[[Spec], list[str]]:
    """Returns `check_spec` that remembers its answers for specs that differ in numbers alone.

    It looks at classes and at names of arguments. A check reads source code and takes tens of milliseconds;
    the points of a sweep have few different answers.
    """
    known: dict[str, list[str] | SpecError] = {}

    def check(spec: Spec) -> list[str]:
        shape = json.dumps(_without_numbers(spec.model_dump(mode="json", exclude={"name", "source"})))
        if shape not in known:
            try:
                known[shape] = check_spec(spec, services)
            except SpecError as error:
                known[shape] = error
        answer = known[shape]
        if isinstance(answer, SpecError):
            raise SpecError(answer.problems)
        return answer

    return check


def _without_numbers(value: object) -> object:
    if isinstance(value, Mapping):
        return {key: _without_numbers(each) for key, each in value.items()}
    if isinstance(value, list):
        return list(map(_without_numbers, value))
    return 0 if isinstance(value, int | float) and not isinstance(value, bool) else value


def _each(points: Iterable[SweepPoint], check: Callable[[Spec], T]) -> list[T]:
    """Returns the results for all points. Raises SpecError with the problems of all."""
    results: list[T] = []
    errors: list[tuple[int, Mapping[str, Any], Sequence[Problem]]] = []
    every = list(points)
    for point in every:
        try:
            results.append(check(point.spec))
        except SpecError as error:
            errors.append((point.number, point.values, error.problems))
    if errors:
        raise SpecError(problems_of_points(errors, len(every)))
    return results
