"""New jobs: many requests share a commit, and a repeated request finds the job that it has made."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import exc, select

from service.access.audit import Note, pending
from service.errors import KeyReused, Unavailable
from service.jobs.job import Job, new_job, utc_now
from service.queue import audit_rows, database
from service.queue.group_commit import GroupCommit
from service.queue.rows import insert_jobs, job_of, without_source
from service.queue.tables import jobs
from service.queue.writes import Writes
from training.spec import Spec

_NewJob = tuple[Job, str | None, Note | None]
"""A job to insert, its idempotency key, and the entry of its request in the audit log."""


class Submissions(Writes):
    """New jobs. Every method raises `Unavailable` as `Store`'s methods do."""

    _commits: GroupCommit[_NewJob, tuple[Job, bool]]

    def create_job(
        self, spec: Spec, *, idempotency_key: str | None = None, user: str | None = None
    ) -> tuple[Job, bool]:
        """Queues a job and returns it with True. Once this returns, the job survives any crash.

        If the key was used before by the same user with the same spec, returns that job and False.
        Raises KeyReused if the key was used with another spec or by another user.
        """
        return self._insert_one(_new_job(spec, idempotency_key, user))

    async def submit_job(
        self, spec: Spec, *, idempotency_key: str | None = None, user: str | None = None
    ) -> tuple[Job, bool]:
        """Does `create_job` in an event loop, in a transaction that many share."""
        return await self._commits.add(_new_job(spec, idempotency_key, user))

    def _insert_group(self, new: Sequence[_NewJob]) -> Sequence[tuple[Job, bool] | Exception]:
        """Inserts the jobs in one transaction; if that fails, for which one may be the reason, each alone."""
        try:
            return self._insert(new)
        except Unavailable:
            raise
        except Exception:
            return [self._outcome(each) for each in new]

    def _outcome(self, new: _NewJob) -> tuple[Job, bool] | Exception:
        try:
            return self._insert_one(new)
        except Exception as error:
            return error

    def _insert(self, new: Sequence[_NewJob]) -> list[tuple[Job, bool]]:
        with self._writing() as connection:
            insert_jobs(
                connection,
                [job for job, *_ in new],
                [key for _, key, _ in new],
                audit_rows.rows_of((note, f"/v1/jobs/{job.id}") for job, _, note in new),
            )
        for _, _, note in new:
            if note is not None:
                note.stored = True
        return [(job, True) for job, *_ in new]

    def _insert_one(self, new: _NewJob) -> tuple[Job, bool]:
        job, idempotency_key, _ = new
        try:
            return self._insert([new])[0]
        except exc.IntegrityError:
            # Race closed: two requests with one key. The unique constraint lets one insert through.
            if idempotency_key is None:
                raise
            return self._job_with_key(idempotency_key, job), False

    def _job_with_key(self, idempotency_key: str, requested: Job) -> Job:
        with database.reading(self._engine) as connection:
            query = select(jobs).where(jobs.c.idempotency_key == idempotency_key)
            existing = job_of(connection.execute(query).one())
        if existing.deleted_at is not None:
            raise KeyReused(
                f"this Idempotency-Key made job {existing.id}, which was deleted; use a new key for a new job"
            )
        if existing.user != requested.user:
            raise KeyReused("this Idempotency-Key was used by another user; use a new key")
        if without_source(existing.spec) != without_source(requested.spec):
            raise KeyReused(
                f"this Idempotency-Key made job {existing.id} from another spec; use a new key for a new job"
            )
        return existing


def _new_job(spec: Spec, idempotency_key: str | None, user: str | None) -> _NewJob:
    return new_job(spec, created_at=utc_now(), user=user), idempotency_key, pending.get()
