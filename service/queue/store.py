"""The durable queue in a database that API and scheduler share: jobs, sweeps, code, secrets, the lease.

Every change to a job is one guarded statement, so any number of processes may work on one queue.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, TypedDict, Unpack

from sqlalchemy import (
    ColumnElement,
    Select,
    Update,
    bindparam,
    exc,
    func,
    literal,
    or_,
    select,
    update,
)

from service.errors import Conflict, KeyReused, NotFound, Refused
from service.jobs import measures
from service.jobs.job import ACTIVE, ENDED, STOPPING, TRANSITIONS, Job, State, is_id, new_job, utc_now
from service.jobs.measures import Addition
from service.jobs.sweep import is_sweep_id
from service.queue import commands, cursors, database, storable, totals
from service.queue.code_archives import CodeArchives
from service.queue.commands import Command
from service.queue.counts import StoredCounts
from service.queue.filters import Filters, conditions
from service.queue.lease import Lease, Silence
from service.queue.notices import notices_of
from service.queue.queue_rows import QueueRows
from service.queue.rows import insert_jobs, job_of, without_source
from service.queue.stored_secrets import StoredSecrets
from service.queue.stored_sweeps import StoredSweeps
from service.queue.tables import UtcDateTime, jobs
from service.queue.totals import StoredTotals
from training.protocol import Failure, Progress
from training.spec import Spec

log = logging.getLogger(__name__)


class Changes(TypedDict, total=False):
    """The columns that `Store.move` may write besides the state."""

    reason: str
    error: dict[str, Any] | None
    started_at: datetime | None
    finished_at: datetime | None
    attempt: int
    start: int
    failures: int
    last_failure: Failure | None
    restarts: tuple[str, ...]
    progress: Progress | None
    workers: int | None
    grows_after: float | None
    ran_seconds: float


NOTES_AT_ONCE = 500
"""Maximum number of notes in one transaction: a cancel of one of these jobs waits for its end."""

_NOTE = (
    update(jobs)
    .where(
        jobs.c.id == bindparam("its_id"),
        jobs.c.state == bindparam("its_state"),
        jobs.c.attempt == bindparam("its_attempt"),
        jobs.c.start == bindparam("its_start"),
    )
    .values(reason=bindparam("why"))
)

_PROGRESS = (
    update(jobs)
    .where(
        jobs.c.id == bindparam("its_id"),
        or_(*(jobs.c.state == state for state in sorted(ACTIVE | ENDED))),
        jobs.c.attempt == bindparam("its_attempt"),
    )
    .values(progress=bindparam("its_progress"))
)

_WAITS_UNTIL = (
    update(jobs)
    .where(jobs.c.id == bindparam("its_id"), jobs.c.waits_until.is_(None))
    .values(waits_until=bindparam("its_end"))
)

_UNENDED = select(jobs.c.id).where(or_(*(jobs.c.state == state for state in sorted(ACTIVE | {State.QUEUED}))))


class Store(Lease, QueueRows, CodeArchives, StoredSecrets, StoredSweeps, StoredTotals, StoredCounts):
    """Jobs, sweeps, code, secrets and the scheduler's row in SQLite (`sqlite:///PATH`) or PostgreSQL (`postgresql://...`).
    Thread-safe.

    Every method raises `Unavailable` if the database does not answer. Then nothing has changed; only if the
    connection is lost during the commit, the whole change may have been written.
    """

    def __init__(self, url: str) -> None:
        self._engine = database.make_engine(url)
        self._silence, self._notices = Silence(), notices_of(self._engine)

    def migrate(self) -> None:
        """Creates or updates the tables. Idempotent; several processes may call it at once."""
        database.migrate(self._engine)

    def check(self) -> None:
        """Raises Unavailable unless the database answers."""
        with database.reading(self._engine) as connection:
            connection.execute(select(1))

    def close(self) -> None:
        self._engine.dispose()

    # Jobs: create and read

    def create_job(self, spec: Spec, *, idempotency_key: str | None = None) -> tuple[Job, bool]:
        """Queues a job and returns it with True. Once this returns, the job survives any crash.

        If the key was used before with the same spec, returns that job and False.
        Raises KeyReused if the key was used with another spec.
        """
        job = new_job(spec, created_at=utc_now())
        try:
            with self._writing() as connection:
                insert_jobs(connection, [job], idempotency_key)
        except exc.IntegrityError:
            # Race closed: two requests with one key. The unique constraint lets one insert through.
            if idempotency_key is None:
                raise
            return self._job_with_key(idempotency_key, job), False
        return job, True

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
        if row is None:
            raise NotFound(f"no job {job_id!r}")
        return job_of(row)

    def with_run(self, run_id: str) -> Job | None:
        """Returns the job with this MLflow run; None if there is none."""
        return next(iter(self._jobs(select(jobs).where(jobs.c.run_id == run_id))), None)

    def several(self, job_ids: Collection[str]) -> list[Job]:
        """Returns those of the jobs that exist."""
        return self._jobs(select(jobs).where(jobs.c.id.in_(job_ids))) if job_ids else []

    def list_jobs(
        self,
        *,
        cursor: str | None = None,
        limit: int = 50,
        **filters: Unpack[Filters],
    ) -> tuple[list[Job], str | None]:
        """Returns a page of jobs, newest first, and the cursor of the next page (None: this is the last).

        Jobs created between two pages neither shift nor repeat the results. Raises Refused for a bad cursor.
        """
        query = select(jobs).where(*conditions(filters)).order_by(jobs.c.id.desc()).limit(limit + 1)
        if cursor is not None:
            query = query.where(jobs.c.id < cursors.decode(cursor))
        found = self._jobs(query)
        return found[:limit], cursors.encode(found[limit - 1].id) if len(found) > limit else None

    def queue(self) -> list[Job]:
        """Returns the queued jobs, in scheduling order."""
        query = select(jobs).where(jobs.c.state == State.QUEUED)
        return self._jobs(query.order_by(jobs.c.priority.desc(), jobs.c.id))

    def active(self) -> list[Job]:
        """Returns the jobs that hold a share of the cluster, oldest first."""
        return self._jobs(select(jobs).where(jobs.c.state.in_(ACTIVE)).order_by(jobs.c.id))

    def has_unended(self) -> bool:
        """Returns whether `queue` or `active` would return a job. Cheaper than either."""
        with database.reading(self._engine) as connection:
            return connection.execute(_UNENDED.limit(1)).first() is not None

    def unarchived(self) -> list[Job]:
        """Returns ended jobs whose logs and end status are not in the tracking server yet, oldest first."""
        query = select(jobs).where(jobs.c.state.in_(ENDED), jobs.c.archived_at.is_(None))
        return self._jobs(query.order_by(jobs.c.id))

    # Jobs: change

    def move(self, job: Job, to: State, **changes: Unpack[Changes]) -> bool:
        """Moves the job to a new state, if its row is still as the caller saw it.

        Returns False if it is not; then nothing has changed. A job with a cancel request is not moved to
        queued, paused or preempting: False.
        Unless `changes` says otherwise, this clears the reason and sets `started_at` when the job first runs,
        `finished_at` when it ends, `workers` to None when it is queued or paused, `preempted_at` when it is
        preempted, and `start` to 1 and `restarts` to none for a new attempt.
        """
        assert to in TRANSITIONS[job.state], f"{job.state} may not become {to}"
        # Race closed: two schedulers, or a scheduler and a cancel, that act on the same view of the row.
        guards = _unchanged(job)
        if to in {State.QUEUED, State.PAUSED, State.PREEMPTING}:
            # Race closed: a cancel that comes while a lost or stopped attempt is being requeued.
            guards.append(jobs.c.cancel_requested_at.is_(None))
        values: dict[str, Any] = {"reason": "", **_with_state(to), **changes, "state": to}
        values["reason"] = storable.reason(values["reason"])
        if moved := self._update(guards, values, measures.of_move(job, to, values, utc_now())):
            about = {"job_id": job.id, "attempt": values.get("attempt", job.attempt)}
            what = f"{job.state} → {to}: {values['reason'].partition(chr(10))[0]}"
            log.info("job %s: %s", job.id, what, extra={"about": about})
        return moved

    def restart(
        self,
        job: Job,
        *,
        reason: str,
        failures: int,
        last_failure: Failure | None,
        restarts: tuple[str, ...],
        ran_seconds: float,
    ) -> bool:
        """Writes the next start of the job's attempt, if its row is still as the caller saw it.

        Returns False if it is not, or if a cancel, pause or preemption was requested. Then nothing changes.
        """
        assert job.state in ACTIVE - STOPPING, f"a job that is {job.state} is not restarted"
        # Races closed: two schedulers that saw the same rank die, and a cancel that comes before the new
        # start. A pause or a preemption that comes before it changes the state.
        guards = [*_unchanged(job), jobs.c.cancel_requested_at.is_(None)]
        values = {
            "start": job.start + 1,
            "reason": storable.reason(reason),
            "failures": failures,
            "last_failure": last_failure,
            "restarts": restarts,
            "ran_seconds": ran_seconds,
        }
        return self._update(guards, values, measures.of_restart(job, values))

    def write_progress(self, reports: Iterable[tuple[Job, Progress]]) -> None:
        """Writes the progress of the jobs' attempts; skips a job that waits or has a newer attempt.

        A job that has ended meanwhile still takes the last report of its last attempt.
        """
        rows = [
            {"its_id": job.id, "its_attempt": job.attempt, "its_progress": progress}
            for job, progress in reports
            if job.progress != progress
        ]
        # Race closed: a late report of an attempt overwrites one of the next attempt.
        self._execute_many(_PROGRESS, rows)

    def note(self, job: Job, reason: str) -> None:
        """Writes why the job waits. Does nothing if the reason is unchanged or the job has moved on."""
        self.note_all([(job, reason)])

    def note_all(self, reasons: Iterable[tuple[Job, str]]) -> None:
        """Does `note` for many jobs in few transactions: one commit per job would take minutes."""
        rows = [
            {"its_id": job.id, "its_state": job.state, "its_attempt": job.attempt, "its_start": job.start}
            | {"why": why}
            for job, reason in reasons
            if job.reason != (why := storable.reason(reason))
        ]
        # Race closed: the reason overwrites that of a job that was started or cancelled meanwhile.
        for begin in range(0, len(rows), NOTES_AT_ONCE):
            self._execute_many(_NOTE, rows[begin : begin + NOTES_AT_ONCE])

    def limit_waits(self, ends: Mapping[str, float]) -> None:
        """Writes when time limits in the queue pass, by job id and the queue's clock. The first is kept."""
        self._execute_many(_WAITS_UNTIL, [{"its_id": job_id, "its_end": end} for job_id, end in ends.items()])

    def request_cancel(self, job_id: str) -> Job:
        """Cancels a waiting job at once; marks an active one for the dispatcher to stop. Idempotent.

        Raises NotFound; Conflict if the job has succeeded or failed.
        """
        return self._request(job_id, commands.cancel())

    def request_pause(self, job_id: str) -> Job:
        """Pauses a waiting job at once; marks an active one for the dispatcher to stop. Idempotent.

        Raises NotFound; Conflict if the job has ended or is being cancelled.
        """
        return self._request(job_id, commands.pause())

    def request_resume(self, job_id: str) -> Job:
        """Puts a paused job back into the queue. Idempotent: does nothing to a job that is not paused.

        Raises NotFound; Conflict if the job has ended, is being cancelled, or is still pausing.
        """
        return self._request(job_id, commands.resume())

    def request_resize(self, job_id: str, workers: int) -> Job:
        """Sets the number of workers of an elastic job. Idempotent.

        A running job is preempted for it as soon as that number, or at least more than it has, is available.
        Raises NotFound; Refused if its spec does not allow the number; Conflict if the job has ended or is
        being cancelled.
        """
        if problem := commands.resize_problem(self.get(job_id), workers):
            raise Refused(f"job {job_id} cannot have {workers} workers", [problem])
        return self._request(job_id, commands.resize(workers))

    def set_run(self, job_id: str, experiment_id: str, run_id: str) -> None:
        """Links the job to its run. Does nothing if the job has one."""
        # Race closed: two schedulers, one of which does not know yet that the other has taken over.
        guards = [jobs.c.id == job_id, jobs.c.run_id.is_(None)]
        self._update(guards, {"experiment_id": experiment_id, "run_id": run_id})

    def mark_archived(self, job_id: str) -> None:
        """Notes that logs and end status are in the tracking server. Idempotent: the first time is kept."""
        self._update([jobs.c.id == job_id, jobs.c.archived_at.is_(None)], {"archived_at": utc_now()})

    # Statements

    def _request(self, job_id: str, command: Command) -> Job:
        self.get(job_id)
        granted = self._update([jobs.c.id == job_id, *command.guards], command.values)
        job = self.get(job_id)
        if not granted and (refusal := command.refusal(job)):
            raise Conflict(f"job {job_id} {refusal}")
        return job

    def _job_with_key(self, idempotency_key: str, requested: Job) -> Job:
        with database.reading(self._engine) as connection:
            query = select(jobs).where(jobs.c.idempotency_key == idempotency_key)
            existing = job_of(connection.execute(query).one())
        if without_source(existing.spec) != without_source(requested.spec):
            raise KeyReused(
                f"this Idempotency-Key made job {existing.id} from another spec; use a new key for a new job"
            )
        return existing

    def _jobs(self, query: Select[Any]) -> list[Job]:
        with database.reading(self._engine) as connection:
            return [job_of(row) for row in connection.execute(query)]

    def _update(
        self,
        guards: Iterable[ColumnElement[bool]],
        values: Mapping[str, Any],
        additions: Iterable[Addition] = (),
    ) -> bool:
        """Writes the row if the guards hold, and then what this adds to the totals."""
        with self._writing() as connection:
            written = connection.execute(update(jobs).where(*guards).values(values)).rowcount == 1
            if written:
                totals.add(connection, additions)
            return written

    def _execute_many(self, statement: Update, rows: Sequence[Mapping[str, Any]]) -> None:
        """Executes the statement for all rows in one transaction, sorted by job id: the fixed lock order
        prevents deadlocks between concurrent writers.
        """
        if rows:
            with self._writing() as connection:
                connection.execute(statement, sorted(rows, key=lambda row: str(row["its_id"])))


def _unchanged(job: Job) -> list[ColumnElement[bool]]:
    """Returns guards that pass if the row is still as `job` was read.

    Attempt and start are included: queued → starting → queued would look like no change otherwise.
    """
    return [
        jobs.c.id == job.id,
        jobs.c.state == job.state,
        jobs.c.attempt == job.attempt,
        jobs.c.start == job.start,
    ]


def _with_state(to: State) -> dict[str, Any]:
    """Returns the columns that every move to this state sets."""
    if to is State.RUNNING:
        return {"started_at": func.coalesce(jobs.c.started_at, literal(utc_now(), UtcDateTime))}
    if to is State.STARTING:
        return {"start": 1, "restarts": (), "preempted_at": None}
    if to is State.PREEMPTING:
        return {"preempted_at": utc_now()}
    if to in {State.QUEUED, State.PAUSED}:
        return {"workers": None}
    return {"finished_at": utc_now()} if to.ended else {}
