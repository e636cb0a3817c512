"""Ended jobs of which something is old enough to be removed by retention, and what was removed of them."""

from __future__ import annotations

from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Select, delete, exists, func, literal, or_, select, update

from service.jobs.job import ENDED, Job, Removed, State
from service.queue import database
from service.queue.deletions import dependents
from service.queue.rows import NOT_DELETED, job_of
from service.queue.tables import UtcDateTime, code_archives, jobs
from service.queue.writes import Writes


class OldCode(NamedTuple):
    """A code archive that no recent job uses. size: in bytes."""

    digest: str
    size: int


class Place(NamedTuple):
    """A place in the order in which jobs ended."""

    finished_at: datetime
    job_id: str


class Retained(Writes):
    """What retention asks. Every method raises `Unavailable` as `Store`'s methods do."""

    def ended_before(
        self, moment: datetime, lacking: Removed, *, after: Place | None = None, limit: int = 100
    ) -> list[Job]:
        """Returns jobs that ended before `moment` and of which `lacking` is not removed yet, in that order.

        Not those that are not archived yet. after: only jobs behind this place.
        """
        query = select(jobs).where(
            jobs.c.finished_at <= literal(moment, UtcDateTime),
            jobs.c.removed.bitwise_and(int(lacking)) == 0,
            jobs.c.archived_at.is_not(None),
            NOT_DELETED,
        )
        if after is not None:
            same = (jobs.c.finished_at == after.finished_at) & (jobs.c.id > after.job_id)
            query = query.where(or_(jobs.c.finished_at > after.finished_at, same))
        return self._of(query.order_by(jobs.c.finished_at, jobs.c.id).limit(limit))

    def sources_in_use(self) -> set[str]:
        """Returns the jobs from which jobs that have not ended start: their checkpoints stay."""
        source = jobs.c.spec[("start_from", "job")].as_string()
        unended = or_(*(jobs.c.state == state for state in sorted(set(State) - ENDED)))
        with database.reading(self._engine) as connection:
            return set(connection.execute(select(source).where(unended, source.is_not(None))).scalars())

    def begin_removing(self, job: Job, what: Removed) -> bool:
        """Notes what is removed of the job from now on. It cannot be retried until `end_removing`.

        Returns False, and then nothing may be removed, if it was retried meanwhile, or if another job starts
        from its checkpoints.
        """
        with self._writing() as connection:
            # Races closed: a retry that would continue from what is about to go, and a job that is to start
            # from it, which is inserted under a lock on this row.
            mine = [jobs.c.id == job.id, jobs.c.state == job.state, jobs.c.attempt == job.attempt]
            connection.execute(select(jobs.c.id).where(*mine).with_for_update())
            if connection.execute(dependents(job.id)).first():
                return False
            values = {name: jobs.c[name].bitwise_or(int(what)) for name in ("removed", "removing")}
            return connection.execute(update(jobs).where(*mine).values(values)).rowcount == 1

    def end_removing(self, job: Job, what: Removed) -> None:
        """Notes that it is removed. Idempotent."""
        with self._writing() as connection:
            left = jobs.c.removing.bitwise_and(~int(what))
            connection.execute(update(jobs).where(jobs.c.id == job.id).values(removing=left))

    def being_removed(self, limit: int = 100) -> list[Job]:
        """Returns the jobs of which something is still being removed."""
        query = select(jobs).where(jobs.c.removing != 0, NOT_DELETED)
        return self._of(query.order_by(jobs.c.id).limit(limit))

    def is_removing(self, job: Job, what: Removed) -> bool:
        """Returns whether the part is still to be removed."""
        query = select(jobs.c.removing).where(jobs.c.id == job.id)
        with database.reading(self._engine) as connection:
            return bool(what & (connection.execute(query).scalar_one_or_none() or 0))

    def old_code(self, moment: datetime, limit: int = 100) -> list[OldCode]:
        """Returns archives that were uploaded before `moment` and whose jobs have all ended before it."""
        size = func.coalesce(func.length(code_archives.c.data), 0)
        query = select(code_archives.c.digest, size).where(*_old(moment))
        with database.reading(self._engine) as connection:
            found = connection.execute(query.order_by(code_archives.c.digest).limit(limit))
            return [OldCode(digest, length) for digest, length in found]

    def remove_code(self, digest: str, moment: datetime) -> bool:
        """Removes such an archive, and notes it in the jobs that used it; returns whether it was there."""
        with self._writing() as connection:
            # Race closed: a job that is inserted or retried now holds a lock on its archive.
            mine = code_archives.c.digest == digest
            connection.execute(select(code_archives.c.digest).where(mine).with_for_update())
            gone = connection.execute(delete(code_archives).where(mine, *_old(moment))).rowcount == 1
            if gone:
                users = update(jobs).where(jobs.c.code == digest)
                connection.execute(users.values(removed=jobs.c.removed.bitwise_or(int(Removed.CODE))))
        return gone

    def _of(self, query: Select[Any]) -> list[Job]:
        with database.reading(self._engine) as connection:
            return [job_of(row) for row in connection.execute(query)]


def _old(moment: datetime) -> tuple[ColumnElement[bool], ...]:
    recent = or_(jobs.c.state.not_in(ENDED), jobs.c.finished_at > moment)
    return (
        code_archives.c.created_at <= moment,
        ~exists().where(jobs.c.code == code_archives.c.digest, recent),
    )
