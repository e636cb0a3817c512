"""The filters of a list of jobs, as conditions on their rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import TypedDict

from sqlalchemy import ColumnElement, exists

from service.jobs.job import State, first_id
from service.queue.tables import job_labels, jobs


class Filters(TypedDict, total=False):
    """Which jobs to list; None and nothing match every job.

    states: in one of these. id_prefix: ids that begin with this. name, experiment: exactly this one.
    labels: all of these. since: created then or later; has a time zone. sweep: jobs of this one.
    user: submitted with a key of this user.
    """

    states: Iterable[State]
    id_prefix: str | None
    name: str | None
    experiment: str | None
    labels: Mapping[str, str] | None
    since: datetime | None
    sweep: str | None
    user: str | None


def conditions(filters: Filters) -> list[ColumnElement[bool]]:
    """Returns the conditions that hold for the jobs that match every filter."""
    found: list[ColumnElement[bool]] = []
    if states := list(filters.get("states") or ()):
        found.append(jobs.c.state.in_(states))
    if prefix := filters.get("id_prefix"):
        found.append(jobs.c.id.startswith(prefix, autoescape=True))
    if (name := filters.get("name")) is not None:
        found.append(jobs.c.name == name)
    if (experiment := filters.get("experiment")) is not None:
        found.append(jobs.c.spec[("tracking", "experiment")].as_string() == experiment)
    if (since := filters.get("since")) is not None:
        found.append(jobs.c.id >= first_id(since))  # ids sort by creation time and have an index
    if (sweep := filters.get("sweep")) is not None:
        found.append(jobs.c.sweep_id == sweep)
    if (user := filters.get("user")) is not None:
        found.append(jobs.c.user == user)
    return found + [_has_label(key, value) for key, value in (filters.get("labels") or {}).items()]


def _has_label(key: str, value: str) -> ColumnElement[bool]:
    return exists().where(
        job_labels.c.job_id == jobs.c.id, job_labels.c.key == key, job_labels.c.value == value
    )
