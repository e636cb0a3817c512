"""Deletion of ended jobs: marked first; the row goes last, when everything else of the job is removed."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from sqlalchemy import Select, delete, exists, func, literal, or_, select, update

from service.errors import Conflict, NotFound
from service.jobs.job import ACTIVE, ENDED, Job, State, utc_now
from service.queue import commands, database
from service.queue.rows import job_of
from service.queue.tables import UtcDateTime, code_archives, jobs
from service.queue.writes import Writes

SECONDS_UNUSED = 600.0
"""How long an archive that no job uses is kept, so that whoever uploads it again can submit a job with it."""

_SHOWN = 5


class Deletions(Writes):
    """Jobs that are deleted or begin again. Every method raises `Unavailable` as `Store`'s methods do."""

    def delete_job(self, job_id: str, *, with_run: bool = False, by: str = "") -> None:
        """Marks an ended job to be deleted; from now on it is not shown. Idempotent.

        with_run: its run in the tracking server is deleted, too. by: the user who asked for it.
        Raises NotFound; Conflict if the job has not ended, or if a job that has not ended starts from it.
        """
        with self._writing() as connection:
            # Race closed: a job that is to start from this one is inserted under a lock on this row.
            row = connection.execute(select(jobs).where(jobs.c.id == job_id).with_for_update()).one_or_none()
            if row is None:
                raise NotFound(f"no job {job_id!r}")
            if row.deleted_at is not None:
                return
            if row.state not in ENDED:
                raise Conflict(
                    f"job {job_id} is {row.state}: only a job that has ended is deleted; to end it first: "
                    f"syncbn cancel {job_id}"
                )
            if names := connection.execute(dependents(job_id)).scalars().all():
                raise Conflict(
                    f"job {job_id} is needed: {listed(names)} that has not ended starts from its "
                    "checkpoints; wait for its end, or cancel it"
                )
            command = commands.given("delete", by, with_run=with_run)
            statement = update(jobs).where(jobs.c.id == job_id, jobs.c.state.in_(ENDED))
            connection.execute(statement.values(deleted_at=utc_now(), last_command=command))

    def deleted(self, limit: int = 100) -> list[Job]:
        """Returns jobs that are marked to be deleted and whose run has its end status, oldest first."""
        query = select(jobs).where(jobs.c.deleted_at.is_not(None), jobs.c.archived_at.is_not(None))
        return self._found(query.order_by(jobs.c.id).limit(limit))

    def remove_job(self, job_id: str) -> None:
        """Removes the row of a job that is marked, and its labels. Idempotent.

        Code that no other job uses is removed later (`remove_unused_code`).
        """
        with self._writing() as connection:
            marked = (jobs.c.id == job_id, jobs.c.deleted_at.is_not(None))
            digest = connection.execute(select(jobs.c.code).where(*marked)).scalar_one_or_none()
            connection.execute(delete(jobs).where(*marked))
            unused = ~exists().where(jobs.c.code == code_archives.c.digest)
            statement = update(code_archives).where(code_archives.c.digest == digest, unused)
            if digest is not None:
                connection.execute(statement.values(unused_since=utc_now()))

    def remove_unused_code(self, seconds: float = SECONDS_UNUSED) -> int:
        """Removes archives that no job has used for so long, since the last one was deleted.

        Returns how many bytes they had.
        """
        old = code_archives.c.unused_since <= literal(utc_now() - timedelta(seconds=seconds), UtcDateTime)
        size = func.coalesce(func.length(code_archives.c.data), 0)
        query = select(code_archives.c.digest, size).where(old).limit(100).with_for_update()
        freed = 0
        with self._writing() as connection:
            # Race closed: a job that is inserted now holds a lock on its archive, or makes it used again.
            for digest, length in connection.execute(query).all():
                unused = ~exists().where(jobs.c.code == digest)
                statement = delete(code_archives).where(code_archives.c.digest == digest, old, unused)
                freed += length * connection.execute(statement).rowcount
        return freed

    # Jobs that begin again from step 0

    def is_to_begin_again(self, job_id: str) -> bool:
        """Returns whether the checkpoints of the job have to be removed before it starts again."""
        query = select(jobs.c.id).where(jobs.c.id == job_id, jobs.c.from_scratch, jobs.c.state.not_in(ACTIVE))
        with database.reading(self._engine) as connection:
            return connection.execute(query).first() is not None

    def begin_again(self, job_id: str) -> None:
        """Notes that the checkpoints are removed: the job may start, and gets a new run. Idempotent."""
        with self._writing() as connection:
            statement = update(jobs).where(jobs.c.id == job_id, jobs.c.from_scratch)
            statement = statement.where(jobs.c.state.not_in(ACTIVE))
            nothing = dict.fromkeys(("progress", "experiment_id", "run_id", "archived_at"))
            connection.execute(statement.values(from_scratch=False, **nothing))

    def _found(self, query: Select[Any]) -> list[Job]:
        with database.reading(self._engine) as connection:
            return [job_of(row) for row in connection.execute(query)]


def dependents(job_id: str) -> Select[str]:
    """Returns the query for the ids of jobs that have not ended and start from a checkpoint of this one."""
    source = jobs.c.spec[("start_from", "job")].as_string()
    unended = or_(*(jobs.c.state == state for state in sorted(set(State) - ENDED)))
    return select(jobs.c.id).where(unended, source == job_id).order_by(jobs.c.id).limit(_SHOWN + 1)


def listed(names: Sequence[str]) -> str:
    """Returns the ids as one phrase.

    >>> listed(["j1", "j2"])
    'a job among j1, j2'
    """
    if len(names) == 1:
        return f"job {names[0]}"
    return f"a job among {', '.join(names[:_SHOWN])}{' and more' if len(names) > _SHOWN else ''}"
