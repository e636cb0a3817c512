"""Jobs as rows of the database."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest
from typing import Any

from sqlalchemy import Connection, Row, select, update

from service.errors import Refused
from service.jobs.job import Job, Removed, State
from service.queue.inserts import insert_together
from service.queue.tables import audit, code_archives, job_labels, jobs
from training.spec import Problem

_COLUMNS = tuple(jobs.columns.keys())

NOT_DELETED = jobs.c.deleted_at.is_(None)
"""Holds for a job that is not marked to be deleted."""


def job_of(row: Row[Any]) -> Job:
    """Returns the job of a row of `jobs`."""
    values = dict(row._mapping)
    del values["idempotency_key"], values["experiment"], values["code"]  # those are in the spec
    known = {"state": State(row.state), "labels": row.spec["labels"], "removed": Removed(row.removed)}
    known["removing"] = Removed(row.removing)
    return Job(**{**values, **known})


def insert_jobs(
    connection: Connection,
    new: Sequence[Job],
    keys: Sequence[str | None] = (),
    entries: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Inserts the jobs with their labels. keys: the idempotency key of each; none: no job has one.

    entries: rows of the audit log that go with them. Raises Refused if their code, or a job that they start
    from, was deleted meanwhile.
    """
    check_code(connection, new)
    check_sources(connection, new)
    rows = _without_nulls([{**_row(job), "idempotency_key": key} for job, key in zip_longest(new, keys)])
    # Race closed: two writers that insert the same keys in another order would wait for each other.
    rows.sort(key=lambda row: row.get("idempotency_key") or "")
    insert_together(connection, [(jobs, rows), (job_labels, list(_labels(new))), (audit, entries)])


def check_code(connection: Connection, new: Iterable[Job]) -> None:
    """Raises Refused unless the jobs' code is stored; from now on it is in use.

    Race closed: the deletion of an archive that no job uses. The lock holds it off until the jobs are there.
    """
    digests = {digest for job in new if (digest := job.spec.get("code"))}
    if not digests:
        return
    query = select(code_archives.c.digest, code_archives.c.unused_since)
    query = query.where(code_archives.c.digest.in_(digests)).order_by(code_archives.c.digest)
    found = connection.execute(query.with_for_update(read=True, key_share=True)).all()
    if missing := sorted(digests - {row.digest for row in found}):
        message = f"no archive of the digest {missing[0]}; upload it first (POST /v1/code)"
        raise Refused("the code of the job is not stored", [Problem(key="code", message=message)])
    if unused := [row.digest for row in found if row.unused_since is not None]:
        used = update(code_archives).where(code_archives.c.digest.in_(unused))
        connection.execute(used.values(unused_since=None))


def check_sources(connection: Connection, new: Iterable[Job]) -> None:
    """Raises Refused unless the jobs that these start from exist.

    Race closed: the deletion of a job that another one is to start from. The lock holds it off until that
    one is there, and then it is refused.
    """
    sources = {job_id for job in new if (job_id := (job.spec.get("start_from") or {}).get("job"))}
    if not sources:
        return
    query = select(jobs.c.id).where(jobs.c.id.in_(sources), NOT_DELETED).order_by(jobs.c.id)
    found = connection.execute(query.with_for_update(read=True)).scalars().all()
    if missing := sorted(sources - set(found)):
        message = f"job {missing[0]}, from which it starts, was deleted"
        raise Refused(message, [Problem(key="start_from.job", message=message)])


def _row(job: Job) -> dict[str, Any]:
    row = {name: getattr(job, name, None) for name in _COLUMNS}
    flags = {"removed": int(job.removed), "removing": int(job.removing)}
    return {**row, **flags, "code": job.spec.get("code")}


def _without_nulls(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Returns the rows without the columns that none of them has: half of a new job's need not be sent."""
    names = [name for name in rows[0] if any(row[name] is not None for row in rows)]
    return [{name: row[name] for name in names} for row in rows]


def _labels(new: Iterable[Job]) -> Iterable[dict[str, str]]:
    for job in new:
        for key, value in job.labels.items():
            yield {"job_id": job.id, "key": key, "value": value}


def without_source(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the spec without who submitted it: that may be another user, or after another commit."""
    return {key: value for key, value in spec.items() if key != "source"}
