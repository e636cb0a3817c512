"""The filters of a list of jobs, as a query of their rows."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from typing import Any, TypedDict

from sqlalchemy import ColumnElement, Select, exists, select, union_all

from service.jobs.job import State, first_id
from service.queue.rows import NOT_DELETED
from service.queue.tables import job_labels, jobs


class Filters(TypedDict, total=False):
    """Which jobs to list; None and nothing match every job.

    states: in one of these. id_prefix: ids that begin with this. name, experiment: exactly this one.
    labels: all of these pairs of key and value. since: created then or later; has a time zone. sweep: jobs
    of this one. user: submitted with a key of this user.
    """

    states: Iterable[State]
    id_prefix: str | None
    name: str | None
    experiment: str | None
    labels: Iterable[tuple[str, str]] | None
    since: datetime | None
    sweep: str | None
    user: str | None


def page(filters: Filters, *, before: str | None, limit: int) -> Select[Any]:
    """Returns the query of the newest jobs that match every filter, newest first.

    before: only jobs older than this one. Each filter alone is read in order from an index, so that a page
    takes as long among a million jobs as among a hundred; several may have to skip what one of them excludes.
    """
    states = list(dict.fromkeys(filters.get("states") or ()))
    if len(states) < 2:
        return _newest(select(jobs), states, filters, before, limit)
    # The newest of each state first: an index on the state is not in order over several of them.
    newest = [_newest(select(jobs.c.id), [state], filters, before, limit).subquery() for state in states]
    ids = union_all(*(select(each.c.id) for each in newest)).subquery()
    return select(jobs).where(jobs.c.id.in_(select(ids.c.id))).order_by(jobs.c.id.desc()).limit(limit)


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


def _newest(
    query: Select[Any], states: Sequence[State], filters: Filters, before: str | None, limit: int
) -> Select[Any]:
    labels = [(key, value, job_labels.alias()) for key, value in filters.get("labels") or ()]
    for key, value, label in labels:
        query = query.join(label, label.c.job_id == jobs.c.id).where(
            label.c.key == key, label.c.value == value
        )
    # In the order of the index that finds the first label, if there is one.
    ids = labels[0][2].c.job_id if labels else jobs.c.id
    of_states = (jobs.c.state == state for state in states)
    query = query.where(NOT_DELETED, *of_states, *_conditions(filters, ids))
    if before is not None:
        query = query.where(ids < before)
    return query.order_by(ids.desc()).limit(limit)


def _conditions(filters: Filters, ids: ColumnElement[str]) -> Iterator[ColumnElement[bool]]:
    if prefix := filters.get("id_prefix"):
        # Not LIKE, which SQLite does not look up in an index.
        yield ids >= prefix
        yield ids < f"{prefix}{chr(sys.maxunicode)}"
    if (since := filters.get("since")) is not None:
        yield ids >= first_id(since)  # ids sort by creation time
    for column, value in (
        (jobs.c.name, filters.get("name")),
        (jobs.c.experiment, filters.get("experiment")),
        (jobs.c.sweep_id, filters.get("sweep")),
        (jobs.c.user, filters.get("user")),
    ):
        if value is not None:
            yield column == value
