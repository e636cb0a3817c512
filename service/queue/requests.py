"""What users ask of jobs that exist: each request is one guarded statement of `service.queue.commands`."""

from __future__ import annotations

from sqlalchemy import select, update

from service.errors import Conflict, NotFound, Refused
from service.jobs.job import Job, is_id
from service.jobs.sweep import is_sweep_id
from service.queue import audit_rows, commands, database
from service.queue.commands import Command
from service.queue.deletions import dependents, listed
from service.queue.rows import check_code, check_sources, job_of
from service.queue.tables import jobs, sweeps
from service.queue.writes import Writes


class Requests(Writes):
    """One job, and the commands on it. by: the user who gives the command; "" if that is not known.

    Every method raises `Unavailable` as `Store`'s methods do, and NotFound.
    """

    def get(self, job_id: str) -> Job:
        """Returns the job. Raises NotFound."""
        if not is_id(job_id):
            hint = (
                "that is the id of a sweep; syncbn list --sweep shows its jobs"
                if is_sweep_id(job_id)
                else "ids look like j1k0w1qk530wdg8e15q54"
            )
            raise NotFound(f"no job {job_id!r}: {hint}")
        with database.reading(self._engine) as connection:
            row = connection.execute(select(jobs).where(jobs.c.id == job_id)).one_or_none()
        if row is None or row.deleted_at is not None:
            raise NotFound(f"no job {job_id!r}" if row is None else f"job {job_id!r} was deleted")
        return job_of(row)

    def request_cancel(self, job_id: str, *, by: str = "") -> Job:
        """Cancels a waiting job at once; marks an active one for the dispatcher to stop. Idempotent.

        Raises Conflict if the job has succeeded or failed.
        """
        return self._request(job_id, commands.cancel(by=by))

    def request_pause(self, job_id: str, *, by: str = "") -> Job:
        """Pauses a waiting job at once; marks an active one for the dispatcher to stop. Idempotent.

        Raises Conflict if the job has ended or is being cancelled.
        """
        return self._request(job_id, commands.pause(by=by))

    def request_resume(self, job_id: str, *, by: str = "") -> Job:
        """Puts a paused job back into the queue. Idempotent: does nothing to a job that is not paused.

        Raises Conflict if the job has ended, is being cancelled, or is still pausing.
        """
        return self._request(job_id, commands.resume(by=by))

    def request_resize(self, job_id: str, workers: int, *, by: str = "") -> Job:
        """Sets the number of workers of an elastic job. Idempotent.

        A running job is preempted for it as soon as that number, or at least more than it has, is available.
        Raises Refused if its spec does not allow the number; Conflict if the job has ended or is being
        cancelled.
        """
        if problem := commands.resize_problem(self.get(job_id), workers):
            raise Refused(f"job {job_id} cannot have {workers} workers", [problem])
        return self._request(job_id, commands.resize(workers, by=by))

    def request_priority(self, job_id: str, priority: int, *, by: str = "") -> Job:
        """Sets the priority of a job that has not ended. Idempotent.

        Raises Conflict if the job has ended or is being cancelled.
        """
        return self._request(job_id, commands.set_priority(priority, by=by))

    def request_retry(self, job_id: str, *, from_scratch: bool = False, by: str = "") -> Job:
        """Puts a failed or cancelled job back into the queue, with all its retries. Idempotent: does nothing
        to a job that has not ended.

        from_scratch: it begins from step 0, in a new run; otherwise it resumes from its last checkpoint.
        Raises Conflict if the job has succeeded, if what it needs was removed, or if other jobs start from
        the checkpoints that would go; Refused if its code or the job that it starts from is gone.
        """
        job = self.get(job_id)
        command = commands.retry(from_scratch=from_scratch, by=by)
        with self._writing() as connection:
            # Races closed: a deletion of what the job needs, and a job that is to start from this one.
            connection.execute(select(jobs.c.id).where(jobs.c.id == job_id).with_for_update())
            check_code(connection, [job])
            if from_scratch or not job.progress:
                check_sources(connection, [job])
            if from_scratch and (names := connection.execute(dependents(job_id)).scalars().all()):
                raise Conflict(
                    f"job {job_id} cannot begin from step 0, which removes its checkpoints: {listed(names)} "
                    "that has not ended starts from them; wait for its end, or cancel it"
                )
            statement = update(jobs).where(jobs.c.id == job_id, *command.guards)
            granted = connection.execute(statement.values(command.values)).rowcount == 1
            if granted:
                audit_rows.record(connection)
            if granted and job.sweep_id is not None:
                # The sweep goes on with its job, and ends once more.
                reopened = {"archived_at": None, "cancel_requested_at": None}
                connection.execute(update(sweeps).where(sweeps.c.id == job.sweep_id).values(reopened))
        return self._result(job_id, command, granted=granted)

    def _request(self, job_id: str, command: Command) -> Job:
        self.get(job_id)
        with self._writing() as connection:
            statement = update(jobs).where(jobs.c.id == job_id, *command.guards)
            granted = connection.execute(statement.values(command.values)).rowcount == 1
            if granted:
                audit_rows.record(connection)
        return self._result(job_id, command, granted=granted)

    def _result(self, job_id: str, command: Command, *, granted: bool) -> Job:
        job = self.get(job_id)
        if not granted and (refusal := command.refusal(job)):
            raise Conflict(f"job {job_id} {refusal}")
        return job
