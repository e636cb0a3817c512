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
    func,
    literal,
    or_,
    select,
    update,
)

from service.jobs import measures
from service.jobs.job import ACTIVE, ENDED, STOPPING, TRANSITIONS, Job, State, utc_now
from service.jobs.measures import Addition
from service.queue import audit_rows, cursors, database, filters, storable, totals
from service.queue.code_archives import CodeArchives
from service.queue.counts import StoredCounts
from service.queue.deletions import Deletions
from service.queue.filters import Filters
from service.queue.group_commit import GroupCommit
from service.queue.job_lists import JobLists
from service.queue.lease import Lease, Silence
from service.queue.notices import notices_of
from service.queue.queue_pages import IN_ORDER, QueuePages
from service.queue.queue_rows import QueueRows
from service.queue.requests import Requests
from service.queue.retained import Retained
from service.queue.room import check_room
from service.queue.rows import NOT_DELETED, job_of
from service.queue.stored_audit import StoredAudit
from service.queue.stored_estimates import StoredEstimates
from service.queue.stored_events import StoredEvents
from service.queue.stored_keys import StoredKeys
from service.queue.stored_secrets import StoredSecrets
from service.queue.stored_sessions import StoredSessions
from service.queue.stored_sweeps import StoredSweeps
from service.queue.stored_webhooks import StoredWebhooks
from service.queue.submissions import Submissions
from service.queue.tables import UtcDateTime, jobs
from service.queue.totals import StoredTotals
from training.protocol import Failure, Progress

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
    failures_in_row: int
    backoff_seconds: float
    not_before: datetime | None
    ended_by: str | None
    weights_sha256: str | None


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


class Store(
    Lease,
    QueuePages,
    JobLists,
    QueueRows,
    CodeArchives,
    StoredEvents,
    StoredSecrets,
    StoredSweeps,
    StoredWebhooks,
    StoredKeys,
    StoredSessions,
    StoredAudit,
    StoredTotals,
    StoredCounts,
    StoredEstimates,
    Submissions,
    Requests,
    Deletions,
    Retained,
):
    """Jobs, sweeps, code, secrets, API keys, the audit log and the scheduler's row, in one database.

    Thread-safe. url: `sqlite:///PATH` or `postgresql://...`.

    Every method raises `Unavailable` if the database does not answer. Then nothing has changed; only if the
    connection is lost during the commit, the whole change may have been written.
    """

    def __init__(self, url: str) -> None:
        self._engine = database.make_engine(url)
        self._silence, self._notices = Silence(), notices_of(self._engine)
        self._commits = GroupCommit(self._insert_group)

    def migrate(self) -> None:
        """Creates or updates the tables. Idempotent; several processes may call it at once."""
        database.migrate(self._engine)

    def check(self) -> None:
        """Raises Unavailable unless the database answers, can be written, and has room."""
        with database.writing(self._engine) as connection:
            connection.execute(update(jobs).where(jobs.c.id == "").values(reason=""))  # no row: no write
            check_room(connection)

    def close(self) -> None:
        self._commits.close()
        self._notices.close()
        self._engine.dispose()

    # Jobs: read

    def with_run(self, run_id: str) -> Job | None:
        """Returns the job with this MLflow run; None if there is none."""
        return next(iter(self._jobs(select(jobs).where(jobs.c.run_id == run_id, NOT_DELETED))), None)

    def several(self, job_ids: Collection[str]) -> list[Job]:
        """Returns those of the jobs that exist."""
        return self._jobs(select(jobs).where(jobs.c.id.in_(job_ids), NOT_DELETED)) if job_ids else []

    def list_jobs(
        self,
        *,
        cursor: str | None = None,
        limit: int = 50,
        **given: Unpack[Filters],
    ) -> tuple[list[Job], str | None]:
        """Returns a page of jobs, newest first, and the cursor of the next page (None: this is the last).

        Jobs created between two pages neither shift nor repeat the results. Raises Refused for a bad cursor.
        """
        before = None if cursor is None else cursors.decode(cursor)
        found = self._jobs(filters.page(given, before=before, limit=limit + 1))
        return found[:limit], cursors.encode(found[limit - 1].id) if len(found) > limit else None

    def queue(self) -> list[Job]:
        """Returns the queued jobs, in scheduling order."""
        return self._jobs(select(jobs).where(jobs.c.state == State.QUEUED).order_by(*IN_ORDER))

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
        preempted, and `start` to 1, `restarts` to none and a wait after failures to none for a new attempt.
        """
        assert to in TRANSITIONS[job.state], f"{job.state} may not become {to}"
        # Race closed: two schedulers, or a scheduler and a cancel, that act on the same view of the row.
        guards = _unchanged(job)
        if to in {State.QUEUED, State.PAUSED, State.PREEMPTING}:
            # Race closed: a cancel that comes while a lost or stopped attempt is being requeued.
            guards.append(jobs.c.cancel_requested_at.is_(None))
        values: dict[str, Any] = {"reason": "", **_with_state(to), **changes, "state": to, "expected": None}
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
        failures_in_row: int,
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
            "failures_in_row": failures_in_row,
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

    def set_experiment(self, job_id: str, experiment_id: str) -> bool:
        """Notes where a run is about to be created for the job. Whoever archives the job looks for it there.

        Returns False, and changes nothing, if the job needs no run any more: it has one, or has ended.
        """
        # Race closed: a cancel that comes before the run; it may be archived already.
        guards = [jobs.c.id == job_id, jobs.c.run_id.is_(None), jobs.c.state.not_in(ENDED)]
        return self._update(guards, {"experiment_id": experiment_id})

    def set_run(self, job_id: str, experiment_id: str, run_id: str) -> None:
        """Links the job to its run, which is ended again if the job ended meanwhile. Does nothing if the job
        has one.
        """
        # Race closed: two schedulers, one of which does not know yet that the other has taken over.
        guards = [jobs.c.id == job_id, jobs.c.run_id.is_(None)]
        run = {"experiment_id": experiment_id, "run_id": run_id}
        self._update(guards, {**run, "archived_at": None})

    def mark_archived(self, job: Job) -> bool:
        """Notes that logs and end status are in the tracking server. Idempotent: the first time is kept.

        Returns False, and changes nothing, if the job has been retried since the caller read it.
        """
        # Race closed: a retry while the logs are uploaded; the next end has to be archived, too.
        guards = [jobs.c.id == job.id, jobs.c.state == job.state, jobs.c.attempt == job.attempt]
        archived = func.coalesce(jobs.c.archived_at, literal(utc_now(), UtcDateTime))
        return self._update(guards, {"archived_at": archived})

    def mark_reopened(self, job: Job) -> None:
        """Notes that the run of a retried job is open again. Does nothing if the job has ended meanwhile."""
        self._update([jobs.c.id == job.id, jobs.c.state.not_in(ENDED)], {"archived_at": None})

    # Statements

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
            changed = connection.execute(update(jobs).where(*guards).values(values)).rowcount == 1
            if changed:
                totals.add(connection, additions)
                audit_rows.record(connection)
        return changed

    def _execute_many(self, statement: Update, rows: Sequence[Mapping[str, Any]]) -> None:
        """Executes the statement for all rows in one transaction, sorted by job id: the fixed lock order
        prevents deadlocks between concurrent writers.
        """
        if rows:
            with self._writing() as connection:
                connection.execute(statement, sorted(rows, key=lambda row: str(row["its_id"])))


def _unchanged(job: Job) -> list[ColumnElement[bool]]:
    """Returns guards that pass if the row is still as `job` was read.

    Attempt and start are included: queued → starting → queued would look like no change otherwise; and
    whether it begins again from step 0: so would queued → cancelled → queued.
    """
    return [
        jobs.c.id == job.id,
        jobs.c.state == job.state,
        jobs.c.attempt == job.attempt,
        jobs.c.start == job.start,
        jobs.c.from_scratch == job.from_scratch,
    ]


def _with_state(to: State) -> dict[str, Any]:
    """Returns the columns that every move to this state sets."""
    if to is State.RUNNING:
        return {"started_at": func.coalesce(jobs.c.started_at, literal(utc_now(), UtcDateTime))}
    if to is State.STARTING:
        return {
            "start": 1,
            "restarts": (),
            "preempted_at": None,
            "backoff_seconds": 0.0,
            "not_before": None,
        }
    if to is State.PREEMPTING:
        return {"preempted_at": utc_now()}
    if to in {State.QUEUED, State.PAUSED}:
        return {"workers": None}
    return {"finished_at": utc_now()} if to.ended else {}
