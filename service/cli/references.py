"""What users write for a job or a sweep: its id, the beginning of its id, or its name."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from service.client import Client, Job, RequestError, Sweep

    Found = Job | Sweep

_ID_LENGTH = 21
_SHORT_LENGTH = 12  # of an id, the kind and the time of submission to the microsecond
_BEGINNING = re.compile(rf"[js][0-9a-z]{{0,{_ID_LENGTH - 1}}}")
_LISTED = 5


def is_sweep(some_id: str) -> bool:
    """Returns whether an id is that of a sweep; those of jobs begin with j."""
    return some_id.startswith("s")


def short_ids(ids: Iterable[str], screen: Console) -> Callable[[str], str]:
    """Returns a function that shortens each of these ids to a beginning that none of the others has.

    In a pipe ids stay whole. Other jobs have the same beginning only if they were submitted in the same
    microsecond.
    """
    if not screen.is_terminal:
        return str
    ordered = sorted(set(ids))
    shared = [_shared(one, other) for one, other in pairwise(ordered)]
    lengths = {
        each: max(_SHORT_LENGTH, 1 + max(before, after))
        for each, before, after in zip(ordered, [0, *shared], [*shared, 0], strict=True)
    }
    return lambda each: each[: lengths.get(each, _SHORT_LENGTH)]


def _shared(one: str, other: str) -> int:
    """Returns the number of characters with which both begin."""
    return next((n for n, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]), len(one))


def job_id(client: Client, reference: str) -> str:
    """Returns the id of the job that a user means. Raises RequestError if that is none, or several."""
    return _one(reference, "job", lambda: jobs_named(client, reference, {}, _LISTED + 1))


def sweep_id(client: Client, reference: str) -> str:
    """Returns the id of the sweep that a user means. Raises RequestError if that is none, or several."""
    return _one(reference, "sweep", lambda: _sweeps_named(client, reference))


def job_or_sweep_id(client: Client, reference: str) -> str:
    """Returns the id of the job or the sweep that a user means. Raises RequestError as `job_id` does."""

    def found() -> Iterator[Found]:
        yield from jobs_named(client, reference, {}, _LISTED + 1)
        yield from _sweeps_named(client, reference)

    return _one(reference, "job", found, " and no such sweep")


def jobs_named(client: Client, reference: str, filters: Mapping[str, Any], limit: int) -> list[Job]:
    """Returns the jobs whose id begins so or that have this name, and that match all filters; newest first.

    limit: the maximum number of each.
    """
    found: dict[str, Job] = {}
    if not reference:  # as of an empty variable in a script: no filter would mean every job
        return []
    if _may_begin(reference, "j"):
        found = {job.id: job for job in client.jobs(**{**filters, "id_prefix": reference}, limit=limit)}
    if len(reference) != _ID_LENGTH or not found:
        found |= {job.id: job for job in client.jobs(**{**filters, "name": reference}, limit=limit)}
    return list(found.values())


def not_found(reference: str, kind: str, more: str = "") -> RequestError:
    """Returns the error for a reference that nothing matches."""
    from service.client import NotFound

    what = f"no {kind} {reference!r}{more}: it is neither an id, nor the beginning of one, nor a name"
    return NotFound(404, {"title": "Not Found", "status": 404, "detail": what})


def ambiguous(reference: str, found: Iterable[Found]) -> RequestError:
    """Returns the error for a reference that more than one job or sweep matches."""
    from service.cli.output import clean
    from service.cli.times import date
    from service.client import RequestError

    found = list(found)
    listed = [
        f"{each.id} ({clean(each.name)}, {each.state}, {date(each.created_at)})" for each in found[:_LISTED]
    ]
    if len(found) > _LISTED:
        listed.append("others")
    what = f"{reference!r} may be any of {', '.join(listed)}: write an id, or more of its beginning"
    return RequestError(409, {"title": "Ambiguous", "status": 409, "detail": what})


def _one(reference: str, kind: str, found: Callable[[], Iterable[Found]], more: str = "") -> str:
    if len(reference) == _ID_LENGTH and _BEGINNING.fullmatch(reference):
        return reference  # whether there is one, the command itself finds out
    matches = list(found())
    if not matches:
        raise not_found(reference, kind, more)
    if len(matches) > 1:
        raise ambiguous(reference, matches)
    return matches[0].id


def _sweeps_named(client: Client, reference: str) -> list[Sweep]:
    found: dict[str, Sweep] = {}
    if not reference:
        return []
    if _may_begin(reference, "s"):
        found = {each.id: each for each in client.sweeps(id_prefix=reference, limit=_LISTED + 1)}
    found |= {each.id: each for each in client.sweeps(name=reference, limit=_LISTED + 1)}
    return list(found.values())


def _may_begin(reference: str, prefix: str) -> bool:
    return reference.startswith(prefix) and _BEGINNING.fullmatch(reference) is not None
