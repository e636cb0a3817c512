"""The tab `spec` of a job: all of it as YAML, and what differs from the defaults or from another job."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml
from fastapi import Request

from service.api.context import Context
from service.api.showable import showable
from service.errors import NotFound
from service.jobs.job import Job, is_id
from service.queue import cursors
from service.queue.store import Store
from training.spec import parse_spec

PREVIOUS = "previous"
"""What is written in place of an id for the latest earlier job of the same name."""
_LONGEST_YAML = 100_000
"""Characters as JSON. PyYAML takes seconds for more; JSON is YAML, too."""
_MOST_ROWS = 2_000
_LONGEST_VALUE = 2_000

Key = tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Row:
    """A key whose value differs. here, there: as YAML; None: the key is not there."""

    key: str
    here: str | None
    there: str | None


@dataclass(frozen=True, kw_only=True)
class SpecView:
    """What the tab shows.

    text: the spec. wanted: what was asked for to compare with; "" for the defaults. other: that job.
    problem: why there is none. rows: what differs; left_out: how many more.
    """

    text: str
    wanted: str
    other: Job | None
    problem: str
    rows: list[Row]
    left_out: int


def values(request: Request, services: Context, job: Job) -> Mapping[str, Any]:
    """Returns what the tab shows. Raises Unavailable."""
    wanted = request.query_params.get("with", "").strip()[:500]
    other, problem = None, ""
    try:
        other = _other(services.store, job, wanted) if wanted else None
    except NotFound as error:
        problem = str(error)
    spec = showable(job.spec)
    rows = [] if problem else list(differences(spec, showable(other.spec) if other else defaults(spec)))
    return {
        "spec": SpecView(
            text=spec_text(spec),
            wanted=wanted,
            other=other,
            problem=problem,
            rows=rows[:_MOST_ROWS],
            left_out=max(len(rows) - _MOST_ROWS, 0),
        )
    }


def _other(store: Store, job: Job, wanted: str) -> Job:
    """Returns the job with this id, the latest other one of this name, or the previous one of the same name.

    Raises NotFound.
    """
    if is_id(wanted):
        return store.get(wanted)
    if wanted == PREVIOUS:
        found, _ = store.list_jobs(name=job.name, cursor=cursors.encode(job.id), limit=1)
        if not found:
            raise NotFound(f"no earlier job is named {job.name!r}")
        return found[0]
    found, _ = store.list_jobs(name=wanted, limit=2)
    others = [each for each in found if each.id != job.id]
    if not others:
        raise NotFound(f"no other job has the id or the name {wanted!r}")
    return others[0]


def spec_text(spec: Mapping[str, Any]) -> str:
    """Returns the spec as YAML; a very long one as JSON, which is YAML, too."""
    text = json.dumps(spec, indent=2, ensure_ascii=False)
    return text if len(text) > _LONGEST_YAML else _yaml(spec)


def defaults(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the shortest spec of this kind, with a script or with a model and data, defaults filled in.

    Without what has no default.
    """
    if spec.get("script") is not None:
        whole = parse_spec({"script": {"path": "script.py"}}).model_dump(mode="json")
        del whole["script"]["path"]
    else:
        nothing = {"class_path": "none.None"}
        whole = parse_spec({"model": nothing, "data": nothing}).model_dump(mode="json")
        del whole["model"], whole["data"]
    return {key: value for key, value in whole.items() if key != "name"}


def differences(here: Mapping[str, Any], there: Mapping[str, Any]) -> Iterator[Row]:
    """Yields the keys whose values differ, in the order of `here`; then those that only `there` has."""
    ours, theirs = dict(_flat(here, ())), dict(_flat(there, ()))
    within = {key[:length] for key in (*ours, *theirs) for length in range(len(key))}
    for key in dict.fromkeys((*ours, *theirs)):
        left, right = ours.get(key, _ABSENT), theirs.get(key, _ABSENT)
        if _are_same(left, right) or (key in within and _is_nothing(left) and _is_nothing(right)):
            continue
        yield Row(key=".".join(key), here=_shown(left), there=_shown(right))


def _are_same(left: object, right: object) -> bool:
    # 1, 1.0 and true are equal, but not the same. An empty mapping says as much as none.
    left, right = (_ABSENT if value == {} else value for value in (left, right))
    return left == right and type(left) is type(right)


def _is_nothing(value: object) -> bool:
    """Whether the values within say it all: the key of the mapping itself is not shown besides."""
    return value is _ABSENT or value is None or value == {} or value == []


_ABSENT = object()


def _flat(value: object, key: Key) -> Iterator[tuple[Key, object]]:
    """Yields each value by its key; a list of mappings by index, other lists as one value."""
    if isinstance(value, Mapping) and value:
        for name, inner in value.items():
            yield from _flat(inner, (*key, str(name)))
    elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        for index, item in enumerate(value):
            yield from _flat(item, (*key, str(index)))
    else:
        yield key, value


def _shown(value: object) -> str | None:
    if value is _ABSENT:
        return None
    is_long = isinstance(value, str | Sequence) and len(value) > _LONGEST_VALUE
    text = json.dumps(value, ensure_ascii=False) if is_long else _yaml(value, flow=True)
    return text if len(text) <= _LONGEST_VALUE else text[:_LONGEST_VALUE] + "…"


def _yaml(value: object, *, flow: bool = False) -> str:
    text = yaml.safe_dump(
        value, sort_keys=False, allow_unicode=True, default_flow_style=flow, width=10_000 if flow else 100
    )
    return text.removesuffix("...\n").rstrip("\n")
