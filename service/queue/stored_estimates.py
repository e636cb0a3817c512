"""When waiting jobs are expected to start, and the lengths of ended jobs from which that follows."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from sqlalchemy import bindparam, select, update

from service.jobs.expected import ExpectedStart
from service.jobs.job import Job, State
from service.jobs.lengths import Plan, Succeeded
from service.queue import database
from service.queue.tables import jobs
from service.queue.writes import Writes

MOST_ENDED = 1_000
"""Of how many of the last jobs that succeeded the lengths are read."""

_EXPECTED = (
    update(jobs)
    .where(
        jobs.c.id == bindparam("its_id"),
        jobs.c.state == State.QUEUED,
        jobs.c.attempt == bindparam("its_attempt"),
    )
    .values(expected=bindparam("its_start", type_=jobs.c.expected.type))
)
_UNITS = ("max_steps", "max_epochs")
_LENGTHS = (
    select(
        *(jobs.c.id, jobs.c.name, jobs.c.sweep_id, jobs.c.ran_seconds, jobs.c.finished_at),
        *(jobs.c.spec["training"][unit].as_integer().label(unit) for unit in _UNITS),
    )
    .where(jobs.c.state == State.SUCCEEDED, jobs.c.ran_seconds > 0)
    .order_by(jobs.c.finished_at.desc())
    .limit(MOST_ENDED)
)


class StoredEstimates(Writes):
    """Estimates of starts. Every method raises `Unavailable` as `Store`'s methods do."""

    def write_expected(self, starts: Iterable[tuple[Job, ExpectedStart | None]]) -> None:
        """Writes when jobs are expected to start, in one transaction; skips a job that waits no more."""
        rows = [{"its_id": job.id, "its_attempt": job.attempt, "its_start": start} for job, start in starts]
        if rows:
            with self._writing() as connection:
                # Race closed: the estimate is written to a job that was started or paused meanwhile.
                connection.execute(_EXPECTED, sorted(rows, key=lambda row: str(row["its_id"])))

    def succeeded(self, since: datetime | None = None) -> list[Succeeded]:
        """Returns the lengths of the last jobs that succeeded. since: of those that ended then or later."""
        query = _LENGTHS if since is None else _LENGTHS.where(jobs.c.finished_at >= since)
        with database.reading(self._engine) as connection:
            rows = connection.execute(query).all()
        return [
            Succeeded(
                job_id=row.id,
                name=row.name,
                sweep_id=row.sweep_id,
                seconds=row.ran_seconds,
                plan=Plan.of({unit: row._mapping[unit] for unit in _UNITS}),
                finished_at=row.finished_at,
            )
            for row in rows
        ]
