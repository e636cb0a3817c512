"""Jobs as rows of the database."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest
from typing import Any

from sqlalchemy import Connection, Row, insert

from service.jobs.job import Job, State
from service.queue.tables import job_labels, jobs


def job_of(row: Row[Any]) -> Job:
    """Returns the job of a row of `jobs`."""
    values = dict(row._mapping)
    del values["idempotency_key"], values["experiment"]
    return Job(**{**values, "state": State(row.state), "labels": row.spec["labels"]})


def insert_jobs(connection: Connection, new: Sequence[Job], keys: Sequence[str | None] = ()) -> None:
    """Inserts the jobs with their labels. keys: the idempotency key of each; none: no job has one."""
    rows = [{**_row(job), "idempotency_key": key} for job, key in zip_longest(new, keys)]
    # Race closed: two writers that insert the same keys in another order would wait for each other.
    rows.sort(key=lambda row: row["idempotency_key"] or "")
    connection.execute(insert(jobs), rows)
    if labels := list(_labels(new)):
        connection.execute(insert(job_labels), labels)


def _row(job: Job) -> dict[str, Any]:
    return {column.name: getattr(job, column.name, None) for column in jobs.columns}


def _labels(new: Iterable[Job]) -> Iterable[dict[str, str]]:
    for job in new:
        for key, value in job.labels.items():
            yield {"job_id": job.id, "key": key, "value": value}


def without_source(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the spec without who submitted it: that may be another user, or after another commit."""
    return {key: value for key, value in spec.items() if key != "source"}
