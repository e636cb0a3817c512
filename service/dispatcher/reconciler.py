"""Reconciles the attempts in the cluster with the jobs' rows, one attempt at a time.

    row                     cluster                     action
    active                  unknown                     launch (or, if it has to stop, conclude)
    active                  an earlier start            end it, then launch the row's start
    active                  ended                       write the job's outcome, or restart in place
    active                  some ranks have failed      end the others
    active, has to stop     running                     ask it to save a checkpoint and end
    not active, or another  anything                    end it, then release it

Every action is idempotent, and correct no matter which scheduler took the step before.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from time import monotonic

from service import logs
from service.backends.cluster import Cluster, Phase, Status
from service.dispatcher.orders import launch_of, name_of, run_folder
from service.dispatcher.stopwatches import Stopwatches
from service.errors import ServiceError, Unavailable
from service.jobs.job import Job, State, utc_now
from service.jobs.outcomes import (
    Outcome,
    Restart,
    before_launch,
    not_ended,
    outcome,
    start_timeout,
    starting_again,
)
from service.log_files import append_line
from service.queue.store import Changes, Store
from service.scheduling.reasons import count
from service.settings import Settings
from training.protocol import ExitRecord, Progress, Superseded, cause

log = logging.getLogger(__name__)

SECONDS_TO_STOP, SECONDS_TO_CANCEL = 120.0, 15.0
"""How long a stopping attempt may take to save a checkpoint. A cancelled one does not need it.
A script has the time that its spec gives it, for either.
"""
SECONDS_TO_REPORT = 1.5
"""How long after a rank's failure the others may report theirs: the first record may not be the cause."""
SECONDS_TO_END = 60.0
"""How long to wait for a host to end its ranks. Ray reports a lost host sooner."""
_LATE = 5.0  # agents themselves end an attempt after its seconds to stop
_SECONDS_BETWEEN_PROGRESS = 1.0


class Reconciler:
    """Reconciles all attempts in each round. In memory it keeps only how long it has waited for what.

    moved: whether the last round has moved a job to another state.
    """

    def __init__(
        self,
        settings: Settings,
        store: Store,
        cluster: Cluster,
        *,
        on_end: Callable[[], object],
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self.settings, self.store, self.cluster = settings, store, cluster
        self._on_end, self._clock = on_end, clock
        self._watches = Stopwatches(clock)
        self._overdue: dict[tuple[str, int], ExitRecord] = {}
        self._progress_at: dict[str, float] = {}
        self.moved = False
        self._progress: list[tuple[Job, Progress]] = []
        self._notes: list[tuple[Job, str]] = []

    def reconcile(self) -> tuple[Mapping[str, Status], list[Job]]:
        """Handles every attempt once; returns them as they were found, and the jobs active afterwards.

        Raises Unavailable and Superseded.
        """
        try:
            # Races closed by reading the cluster first and the rows second. An attempt that another scheduler
            # launches in between is in its row: it is launched again, which is harmless, and not taken for a
            # stray. If an attempt has ended because of a command, the row already shows the command.
            attempts = self.cluster.attempts()
        except Unavailable:
            self._watches.clear()  # time without a view of the cluster does not count
            raise
        active, self.moved = self.store.active(), False
        for job in active:
            with logs.about(job_id=job.id, attempt=job.attempt), self._guarded(job.id):
                self._reconcile(job, attempts.get(name_of(job)))
        progress = self._write()
        self._end_strays(attempts, {name_of(job) for job in active})
        self._forget_others(active)
        if self.moved:
            return attempts, self.store.active()
        return attempts, [replace(job, progress=progress.get(job.id, job.progress)) for job in active]

    def launch(self, job: Job) -> None:
        """Launches the start that the row names. Idempotent."""
        self.cluster.launch(launch_of(job, self.settings, self.store))

    @contextmanager
    def _guarded(self, what: str) -> Iterator[None]:
        """Logs errors, except Superseded: one job's error must not block the others."""
        try:
            yield
        except Superseded:
            raise
        except ServiceError as error:
            log.warning("%s: %s", what, error)
        except Exception:
            log.exception("%s", what)

    # One job

    def _reconcile(self, job: Job, status: Status | None) -> None:
        if status is None or (status.ended and status.start < job.start):
            self._not_launched(job)
        elif status.ended:
            self._ended(job, status)
        elif self._must_end(job, status):
            self._end(job, status)
        elif not job.stopping:
            self._follow(job, status)
        elif status.phase is Phase.PLACING:
            # There is nothing to save. The next round releases its placement.
            self._finish(job, before_launch(job))
        else:
            # In every round, because an agent that was away may have missed the last order.
            self.cluster.stop(name_of(job), seconds=_seconds_to_stop(job))
            self._report_progress(job, status)

    def _not_launched(self, job: Job) -> None:
        """Launches the row's start: a scheduler died before the launch, or the cluster lost its memory."""
        if job.stopping:
            self._finish(job, before_launch(job))
            return
        try:
            self.launch(job)
        except Unavailable as error:
            log.warning("job %s: %s", job.id, error)
            self._notes.append((job, _starting(job, str(error))))

    def _must_end(self, job: Job, status: Status) -> bool:
        key = (name_of(job), status.start)
        failed = any(record.failed for record in status.exits)
        ends = status.start < job.start
        # No early return: a stopwatch that is not read in a round is reset.
        if failed:
            ends |= self._watches.seconds("failed", *key) >= SECONDS_TO_REPORT
        if job.stopping:
            allowed = _seconds_to_stop(job)
            ends |= self._watches.seconds("stopping", *key, allowed) >= allowed + _LATE
        if status.phase is not Phase.RUNNING:
            # pip may take long and is no hang: it has a limit of its own.
            installs = status.phase is Phase.INSTALLING
            limit = self.settings.install_seconds if installs else self.settings.start_seconds
            if self._watches.seconds("installing" if installs else "starting", *key) >= limit:
                self._overdue.setdefault(key, start_timeout(limit, status.message))
        return ends or key in self._overdue

    def _end(self, job: Job, status: Status) -> None:
        self.cluster.end(name_of(job))
        waited = self._watches.seconds("ending", name_of(job), status.start)
        late = self._overdue_record(job, status)
        if late and status.phase is Phase.PLACING:
            self._conclude(job, status, late)  # nothing runs yet, so there is nothing to wait for
        elif waited >= SECONDS_TO_END:
            self._conclude(job, status, (*status.exits, *late, not_ended(SECONDS_TO_END)))

    def _ended(self, job: Job, status: Status) -> None:
        late = self._overdue_record(job, status) if cause(status.exits) is None else ()
        self._conclude(job, status, (*status.exits, *late))

    def _overdue_record(self, job: Job, status: Status) -> tuple[ExitRecord, ...]:
        record = self._overdue.get((name_of(job), status.start))
        return () if record is None else (record,)

    def _conclude(self, job: Job, status: Status, exits: tuple[ExitRecord, ...]) -> None:
        cancelled = job.cancel_requested_at is not None
        result = outcome(job, exits, cancelled=cancelled, seconds=status.seconds)
        if isinstance(result, Restart):
            self._restart(job, result, status.seconds)
        elif self._finish(job, result, status) and status.ended:
            self.cluster.release(name_of(job))  # an attempt not released now is a stray in the next round

    def _finish(self, job: Job, result: Outcome, status: Status | None = None) -> bool:
        changes: Changes = {
            "reason": result.reason,
            "error": result.error,
            "failures": result.failures,
            "last_failure": result.last_failure,
            "failures_in_row": result.failures_in_row,
            "ended_by": result.ended_by,
            "weights_sha256": result.weights_sha256,
        }
        if wait := result.backoff_seconds:
            changes |= {"backoff_seconds": wait, "not_before": utc_now() + timedelta(seconds=wait)}
        if status is not None:
            changes["ran_seconds"] = job.ran_seconds + status.seconds
            if status.progress is not None:
                changes["progress"] = status.progress
        # Race closed: a pause or a preemption after we read the row. The state is no longer what we saw, so
        # nothing changes, and the next round decides by the new state.
        moved = self.store.move(job, result.state, **changes)
        self.moved |= moved
        if moved and result.state.ended:
            self._on_end()
        return moved

    def _restart(self, job: Job, restart: Restart, seconds: float) -> None:
        # Race closed: a cancel, pause or preemption after we read the row: as above.
        if not self.store.restart(
            job,
            reason=restart.reason,
            failures=restart.failures,
            failures_in_row=restart.failures_in_row,
            last_failure=restart.last_failure,
            restarts=restart.restarts,
            ran_seconds=job.ran_seconds + seconds,
        ):
            return
        try:
            append_line(run_folder(self.settings, job), job.attempt, f"syncbn: {restart.reason}")
        except OSError as error:
            log.warning("job %s: cannot note the restart in its log: %s", job.id, error)
        self.launch(
            replace(
                job,
                start=job.start + 1,
                failures=restart.failures,
                restarts=restart.restarts,
                ran_seconds=job.ran_seconds + seconds,
            )
        )

    # What a running job shows

    def _follow(self, job: Job, status: Status) -> None:
        # A script makes no progress that is known.
        trains = status.phase is Phase.RUNNING and (status.progress is not None or job.runs_script)
        if job.state is not State.STARTING:
            self._report_progress(job, status)
            if trains:
                self._notes.append((job, ""))  # clears the reason of a restart
        elif trains:
            self.moved |= self.store.move(job, State.RUNNING, progress=status.progress)
        else:
            self._notes.append((job, _starting(job, status.message)))

    def _report_progress(self, job: Job, status: Status) -> None:
        """Collects progress at a limited rate; `_write` writes it for all jobs at once."""
        now = self._clock()
        if status.progress is None or status.progress == job.progress:
            return
        if now - self._progress_at.get(job.id, float("-inf")) >= _SECONDS_BETWEEN_PROGRESS:
            self._progress_at[job.id] = now
            self._progress.append((job, status.progress))

    def _write(self) -> dict[str, Progress]:
        progress, self._progress = self._progress, []
        notes, self._notes = self._notes, []
        self.store.write_progress(progress)
        self.store.note_all(notes)
        return {job.id: latest for job, latest in progress}

    # Attempts that belong to no active job

    def _end_strays(self, attempts: Mapping[str, Status], current: set[str]) -> None:
        """Ends and releases attempts that a scheduler left behind when it died, or that were given up."""
        for name, status in attempts.items():
            if name not in current:
                with self._guarded(name):
                    if not status.ended:
                        self.cluster.end(name)
                    if status.ended or status.phase is Phase.PLACING:
                        self.cluster.release(name)

    def _forget_others(self, active: Iterable[Job]) -> None:
        self._watches.sweep()
        jobs = {job.id: name_of(job) for job in active}
        names = set(jobs.values())
        self._overdue = {key: record for key, record in self._overdue.items() if key[0] in names}
        self._progress_at = {job_id: at for job_id, at in self._progress_at.items() if job_id in jobs}


def _seconds_to_stop(job: Job) -> float:
    if job.runs_script:
        return float(job.spec["script"]["grace_seconds"])
    return SECONDS_TO_STOP if job.cancel_requested_at is None else SECONDS_TO_CANCEL


def _starting(job: Job, message: str) -> str:
    assert job.workers is not None
    text = starting_on(job.workers)
    if job.restarts:
        text = starting_again(job, job.restarts[-1], job.failures, job.last_failure)
    return f"{text}: {message}" if message else text


def starting_on(workers: int) -> str:
    """Returns the reason of a job whose attempt is starting."""
    return f"starting on {count(workers, 'worker')}"
