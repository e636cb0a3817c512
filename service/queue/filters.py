"""The filters of a list of jobs, as a query of their rows."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from typing import Any, NamedTuple, TypedDict

from sqlalchemy import Column, ColumnElement, Select, exists, select, union_all

from service.jobs.job import State, first_id
from service.queue import patterns
from service.queue.rows import NOT_DELETED
from service.queue.tables import job_labels, jobs

_deleted = jobs.alias()
_NOT_AMONG_DELETED = jobs.c.id.not_in(select(_deleted.c.id).where(_deleted.c.deleted_at.is_not(None)))
"""Says what NOT_DELETED says, and is read from an index."""


class Filters(TypedDict, total=False):
    """Which jobs to list; None and nothing match every job.

    states: in one of these. id_prefix: ids that begin with this. name: this one; with * or ?, those that
    match it as a pattern (service.queue.patterns). experiment: exactly this one. labels: all of these pairs
    of key and value. since: created then or later; has a time zone. sweep: jobs of this one. user: submitted
    with a key of this user.
    """

    states: Iterable[State]
    id_prefix: str | None
    name: str | None
    experiment: str | None
    labels: Iterable[tuple[str, str]] | None
    since: datetime | None
    sweep: str | None
    user: str | None


def page(
    filters: Filters,
    *,
    before: str | None = None,
    after: str | None = None,
    limit: int,
    oldest_first: bool = False,
) -> Select[Any]:
    """Returns the query of the newest jobs that match every filter, newest first; or of the oldest.

    before: only jobs older than this one. after: only jobs newer than this one.
    Each filter alone is read in order from an index, so that a page takes as long among a million jobs as
    among a hundred; several may have to skip what one of them excludes. Of a pattern of names all names with
    its beginning are read, in the index alone.
    """
    states = list(dict.fromkeys(filters.get("states") or ()))
    bounds = _Bounds(before, after, limit, oldest_first)
    if len(states) < 2 and not patterns.is_pattern(filters.get("name") or ""):
        return _first(select(jobs), states, filters, bounds)
    # The first of each state first: an index on the state is not in order over several of them. And of a
    # pattern the ids first: the rows of all jobs that match would have to be read before they are sorted.
    each_alone = [[state] for state in states] or [[]]
    first = [_first(select(jobs.c.id), alone, filters, bounds).subquery() for alone in each_alone]
    ids = union_all(*(select(each.c.id) for each in first)).subquery()
    query = select(jobs).where(jobs.c.id.in_(select(ids.c.id)))
    return query.order_by(bounds.order(jobs.c.id)).limit(limit)


def conditions(filters: Filters) -> list[ColumnElement[bool]]:
    """Returns the conditions that hold for the jobs that match every filter, for a query in another order."""
    found = [NOT_DELETED, *_conditions(filters, jobs.c.id)]
    if states := list(filters.get("states") or ()):
        found.append(jobs.c.state.in_(states))
    return found + [_has_label(key, value) for key, value in filters.get("labels") or ()]


def _has_label(key: str, value: str) -> ColumnElement[bool]:
    return exists().where(
        job_labels.c.job_id == jobs.c.id, job_labels.c.key == key, job_labels.c.value == value
    )


class _Bounds(NamedTuple):
    """Where a page of a list by age begins, and its direction."""

    before: str | None
    after: str | None
    limit: int
    oldest_first: bool

    def order(self, ids: ColumnElement[str]) -> ColumnElement[str]:
        return ids.asc() if self.oldest_first else ids.desc()


def _first(query: Select[Any], states: Sequence[State], filters: Filters, bounds: _Bounds) -> Select[Any]:
    labels = [(key, value, job_labels.alias()) for key, value in filters.get("labels") or ()]
    for key, value, label in labels:
        query = query.join(label, label.c.job_id == jobs.c.id).where(
            label.c.key == key, label.c.value == value
        )
    # In the order of the index that finds the first label, if there is one.
    ids = labels[0][2].c.job_id if labels else jobs.c.id
    of_states = (jobs.c.state == state for state in states)
    is_there = _NOT_AMONG_DELETED if patterns.is_pattern(filters.get("name") or "") else NOT_DELETED
    query = query.where(is_there, *of_states, *_conditions(filters, ids))
    if bounds.before is not None:
        query = query.where(ids < bounds.before)
    if bounds.after is not None:
        query = query.where(ids > bounds.after)
    return query.order_by(bounds.order(ids)).limit(bounds.limit)


def _conditions(filters: Filters, ids: ColumnElement[str]) -> Iterator[ColumnElement[bool]]:
    if prefix := filters.get("id_prefix"):
        yield from begins(ids, prefix)
    if (since := filters.get("since")) is not None:
        yield ids >= first_id(since)  # ids sort by creation time
    if (name := filters.get("name")) is not None:
        yield named(jobs.c.name, name)
    for column, value in (
        (jobs.c.experiment, filters.get("experiment")),
        (jobs.c.sweep_id, filters.get("sweep")),
        (jobs.c.user, filters.get("user")),
    ):
        if value is not None:
            yield column == value


def begins(ids: ColumnElement[str], prefix: str) -> tuple[ColumnElement[bool], ...]:
    """Returns the conditions that an id begins so. Not LIKE, which SQLite does not look up in an index."""
    return ids >= prefix, ids < f"{prefix}{chr(sys.maxunicode)}"


def named(names: Column[str], name: str) -> ColumnElement[bool]:
    """Returns the condition that a name is this one, or matches it if it is a pattern."""
    return patterns.matches(names, name) if patterns.is_pattern(name) else names == name
