"""The durable queue: jobs in a database that API and scheduler share, beside code and the scheduler's row.

Every change of a job is one guarded statement, so any number of processes may work on one queue.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, TypedDict, Unpack

from sqlalchemy import (
    ColumnElement,
    Row,
    Select,
    Update,
    bindparam,
    exc,
    exists,
    func,
    insert,
    literal,
    or_,
    select,
    update,
)

from service.errors import Conflict, KeyReused, NotFound, Refused
from service.jobs.job import ACTIVE, ENDED, STOPPING, TRANSITIONS, Job, State, is_id, new_job, utc_now
from service.queue import commands, cursors, database, storable
from service.queue.code_archives import CodeArchives
from service.queue.commands import Command
from service.queue.lease import Lease
from service.queue.tables import UtcDateTime, job_labels, jobs
from training.protocol import Failure, Progress
from training.spec import Spec


class Changes(TypedDict, total=False):
    """What a move may write besides the state."""

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
    grows_after: datetime | None


NOTES_AT_ONCE = 500
"""In one transaction: so long may a cancel of one of these jobs have to wait."""

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


class Store(Lease, CodeArchives):
    """Jobs, code and the scheduler's row, in SQLite (`sqlite:///PATH`) or PostgreSQL (`postgresql://...`).
    Thread-safe.

    Every method raises `Unavailable` when the database does not answer; then nothing has changed, or
    (a connection lost in the very commit) the whole change has.
    """

    def __init__(self, url: str) -> None:
        self._engine = database.make_engine(url)

    def migrate(self) -> None:
        """Creates or updates the tables; several processes may call it at once."""
        database.migrate(self._engine)

    def check(self) -> None:
        """Raises Unavailable unless the database answers."""
        with database.reading(self._engine) as connection:
            connection.execute(select(1))

    def close(self) -> None:
        self._engine.dispose()

    # Jobs: create and read

    def create_job(self, spec: Spec, *, idempotency_key: str | None = None) -> tuple[Job, bool]:
        """Queues a job; once this returns, the job survives any crash.

        With a key that was used before: the job it made and False, if the spec is the same.
        Raises KeyReused if it is another one.
        """
        job = new_job(spec, created_at=utc_now())
        try:
            self._insert(job, idempotency_key)
        except exc.IntegrityError:
            # Race closed: two requests with one key. The unique constraint lets one insert through.
            if idempotency_key is None:
                raise
            return self._made_by(idempotency_key, job), False
        return job, True

    def get(self, job_id: str) -> Job:
        """Raises NotFound."""
        if not is_id(job_id):
            raise NotFound(f"no job {job_id!r}: ids look like j1k0w1qk530wdg8e15q54")
        with database.reading(self._engine) as connection:
            row = connection.execute(select(jobs).where(jobs.c.id == job_id)).one_or_none()
        if row is None:
            raise NotFound(f"no job {job_id!r}")
        return _job(row)

    def several(self, job_ids: Collection[str]) -> list[Job]:
        """Those of the jobs that there are."""
        return self._jobs(select(jobs).where(jobs.c.id.in_(job_ids))) if job_ids else []

    def list_jobs(
        self,
        *,
        states: Iterable[State] = (),
        name: str | None = None,
        labels: Mapping[str, str] | None = None,
        cursor: str | None = None,
        limit: int = 50,
    ) -> tuple[list[Job], str | None]:
        """A page of jobs, newest first, and the cursor of the next page (None: this was the last).

        Jobs created meanwhile neither shift nor repeat what a cursor gives. Raises Refused for a bad one.
        """
        query = select(jobs).order_by(jobs.c.id.desc()).limit(limit + 1)
        if wanted := list(states):
            query = query.where(jobs.c.state.in_(wanted))
        if name is not None:
            query = query.where(jobs.c.name == name)
        for key, value in (labels or {}).items():
            query = query.where(_has_label(key, value))
        if cursor is not None:
            query = query.where(jobs.c.id < cursors.decode(cursor))
        found = self._jobs(query)
        return found[:limit], cursors.encode(found[limit - 1].id) if len(found) > limit else None

    def queue(self) -> list[Job]:
        """The jobs that wait, in the order in which they are to start."""
        query = select(jobs).where(jobs.c.state == State.QUEUED)
        return self._jobs(query.order_by(jobs.c.priority.desc(), jobs.c.id))

    def active(self) -> list[Job]:
        """The jobs that hold a share of the cluster, oldest first."""
        return self._jobs(select(jobs).where(jobs.c.state.in_(ACTIVE)).order_by(jobs.c.id))

    def unarchived(self) -> list[Job]:
        """Jobs that have ended and whose log and run's end still have to be written, oldest first."""
        query = select(jobs).where(jobs.c.state.in_(ENDED), jobs.c.archived_at.is_(None))
        return self._jobs(query.order_by(jobs.c.id))

    # Jobs: change

    def move(self, job: Job, to: State, **changes: Unpack[Changes]) -> bool:
        """Moves the job from where the caller saw it. False: somebody else was first, nothing changed.

        Sets `started_at` the first time it runs, `finished_at` at its end, takes back its workers when it
        goes back to the queue or is paused, notes since when it is preempted, counts starts anew for a new
        attempt, and clears the reason, unless `changes` say otherwise. A job that somebody asked to cancel
        goes to no state but its end: False.
        """
        assert to in TRANSITIONS[job.state], f"{job.state} may not become {to}"
        # Race closed: two schedulers, or a scheduler and a cancel, that decided on the same sight of the job.
        seen = _as_seen(job)
        if to in {State.QUEUED, State.PAUSED, State.PREEMPTING}:
            # Race closed: a cancel that came while a lost or stopped attempt was being put back.
            seen.append(jobs.c.cancel_requested_at.is_(None))
        values: dict[str, Any] = {"reason": "", **_with_state(to), **changes, "state": to}
        values["reason"] = storable.reason(values["reason"])
        return self._update(seen, values)

    def restart(
        self,
        job: Job,
        *,
        reason: str,
        failures: int,
        last_failure: Failure | None,
        restarts: tuple[str, ...],
    ) -> bool:
        """Names the next start of the job's attempt. False: somebody else was first, nothing changed.

        A job that somebody asked to cancel, to pause or to preempt is not started again: False.
        """
        assert job.state in ACTIVE - STOPPING, f"what is {job.state} is not started again"
        # Race closed: two schedulers that saw the same rank die, and a cancel that came before the new start.
        # A pause or a preemption that did has changed the state.
        seen = [*_as_seen(job), jobs.c.cancel_requested_at.is_(None)]
        values = {
            "start": job.start + 1,
            "reason": storable.reason(reason),
            "failures": failures,
            "last_failure": last_failure,
            "restarts": restarts,
        }
        return self._update(seen, values)

    def write_progress(self, reports: Iterable[tuple[Job, Progress]]) -> None:
        """Keeps what the jobs' attempts tell of themselves; does nothing for a job that has moved on.

        A job that has ended meanwhile takes the last word of its last attempt.
        """
        rows = [
            {"its_id": job.id, "its_attempt": job.attempt, "its_progress": progress}
            for job, progress in reports
            if job.progress != progress
        ]
        # Race closed: a report of an attempt that was late, written over that of the next one.
        self._execute_many(_PROGRESS, rows)

    def note(self, job: Job, reason: str) -> None:
        """Writes why the job waits; does nothing if it says so already or has moved on."""
        self.note_all([(job, reason)])

    def note_all(self, reasons: Iterable[tuple[Job, str]]) -> None:
        """`note` for many: a commit for each would take a long queue minutes."""
        rows = [
            {"its_id": job.id, "its_state": job.state, "its_attempt": job.attempt, "its_start": job.start}
            | {"why": why}
            for job, reason in reasons
            if job.reason != (why := storable.reason(reason))
        ]
        # Race closed: a reason to wait written over a job that was started or cancelled meanwhile.
        for begin in range(0, len(rows), NOTES_AT_ONCE):
            self._execute_many(_NOTE, rows[begin : begin + NOTES_AT_ONCE])

    def request_cancel(self, job_id: str) -> Job:
        """Cancels a job that waits; marks one that runs, for the dispatcher to stop. Idempotent.

        Raises NotFound; Conflict if the job has succeeded or failed.
        """
        return self._request(job_id, commands.cancel())

    def request_pause(self, job_id: str) -> Job:
        """Holds a job that waits; has the dispatcher stop the attempt of one that is active. Idempotent.

        Raises NotFound; Conflict if the job has ended or is being cancelled.
        """
        return self._request(job_id, commands.pause())

    def request_resume(self, job_id: str) -> Job:
        """Puts a paused job back into the queue. Idempotent: one that is not paused goes on as it is.

        Raises NotFound; Conflict if the job has ended, is being cancelled, or has not stopped yet.
        """
        return self._request(job_id, commands.resume())

    def request_resize(self, job_id: str, workers: int) -> Job:
        """Has an elastic job go on with so many workers, and no more. Idempotent. One that runs is stopped
        for it as soon as that many, or at least more than it has, can be had.

        Raises NotFound; Refused for a number that its spec does not allow; Conflict if the job has ended or
        is being cancelled.
        """
        if problem := commands.resize_problem(self.get(job_id), workers):
            raise Refused(f"job {job_id} cannot have {workers} workers", [problem])
        return self._request(job_id, commands.resize(workers))

    def set_run(self, job_id: str, experiment_id: str, run_id: str) -> None:
        """Links the job to its run; the first one stays."""
        # Race closed: two schedulers, one of which does not know yet that the other has followed it.
        guards = [jobs.c.id == job_id, jobs.c.run_id.is_(None)]
        self._update(guards, {"experiment_id": experiment_id, "run_id": run_id})

    def mark_archived(self, job_id: str) -> None:
        """Notes that log and end are with the tracking server. Idempotent: the first time stays."""
        self._update([jobs.c.id == job_id, jobs.c.archived_at.is_(None)], {"archived_at": utc_now()})

    # Statements

    def _request(self, job_id: str, command: Command) -> Job:
        self.get(job_id)
        granted = self._update([jobs.c.id == job_id, *command.guards], command.values)
        job = self.get(job_id)
        if not granted and (refusal := command.refusal(job)):
            raise Conflict(f"job {job_id} {refusal}")
        return job

    def _insert(self, job: Job, idempotency_key: str | None) -> None:
        row = {column.name: getattr(job, column.name, None) for column in jobs.columns}
        labels = [{"job_id": job.id, "key": key, "value": value} for key, value in job.labels.items()]
        with database.writing(self._engine) as connection:
            connection.execute(insert(jobs).values({**row, "idempotency_key": idempotency_key}))
            if labels:
                connection.execute(insert(job_labels), labels)

    def _made_by(self, idempotency_key: str, asked: Job) -> Job:
        with database.reading(self._engine) as connection:
            query = select(jobs).where(jobs.c.idempotency_key == idempotency_key)
            made = _job(connection.execute(query).one())
        if made.spec != asked.spec:
            raise KeyReused(
                f"this Idempotency-Key made job {made.id} from another spec; use a new key for a new job"
            )
        return made

    def _jobs(self, query: Select[Any]) -> list[Job]:
        with database.reading(self._engine) as connection:
            return [_job(row) for row in connection.execute(query)]

    def _update(self, guards: Iterable[ColumnElement[bool]], values: Mapping[str, Any]) -> bool:
        with database.writing(self._engine) as connection:
            return connection.execute(update(jobs).where(*guards).values(values)).rowcount == 1

    def _execute_many(self, statement: Update, rows: Sequence[Mapping[str, Any]]) -> None:
        """One transaction for all rows, in the order of their jobs: two that write at once wait for each
        other's rows, but never in a ring.
        """
        if rows:
            with database.writing(self._engine) as connection:
                connection.execute(statement, sorted(rows, key=lambda row: str(row["its_id"])))


def _as_seen(job: Job) -> list[ColumnElement[bool]]:
    """That the job still stands as its reader saw it.

    Attempt and start are part of that: queued → starting → queued would otherwise look like no change.
    """
    return [
        jobs.c.id == job.id,
        jobs.c.state == job.state,
        jobs.c.attempt == job.attempt,
        jobs.c.start == job.start,
    ]


def _with_state(to: State) -> dict[str, Any]:
    """What changes with the state, whoever moves the job."""
    if to is State.RUNNING:
        return {"started_at": func.coalesce(jobs.c.started_at, literal(utc_now(), UtcDateTime))}
    if to is State.STARTING:
        return {"start": 1, "restarts": (), "preempted_at": None}
    if to is State.PREEMPTING:
        return {"preempted_at": utc_now()}
    if to in {State.QUEUED, State.PAUSED}:
        return {"workers": None}
    return {"finished_at": utc_now()} if to.ended else {}


def _job(row: Row[Any]) -> Job:
    values = dict(row._mapping)
    del values["idempotency_key"]
    return Job(**{**values, "state": State(row.state), "labels": row.spec["labels"]})


def _has_label(key: str, value: str) -> ColumnElement[bool]:
    return exists().where(
        job_labels.c.job_id == jobs.c.id, job_labels.c.key == key, job_labels.c.value == value
    )
