"""Brings what runs in the cluster and what the rows say together, one attempt at a time.

    row                     cluster                     what is done
    active                  unknown                     launched (or, if it is to stop, at its end)
    active                  an earlier start            ended, then the row's start is launched
    active                  ended                       the job's outcome, or the next start where it is
    active                  some ranks have failed      the others are ended
    active, to stop         at work                     asked to save itself
    not active, or another  anything                    ended, then forgotten

Each line holds whoever did the step before, and however often the step is done.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from time import monotonic

from service.backends.cluster import Cluster, Phase, Status
from service.dispatcher.orders import launch_of, name_of, run_folder
from service.dispatcher.stopwatches import Stopwatches
from service.errors import ServiceError, Unavailable
from service.jobs.job import Job, State
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
"""How long an attempt that is stopped may take to save a checkpoint; nobody needs that of one cancelled."""
SECONDS_TO_SPEAK = 1.5
"""How long the other ranks may say what they know, once one has failed: it may not be the one that began."""
SECONDS_TO_END = 60.0
"""Then a host that does not end its ranks is not waited for; one that is lost Ray reports sooner."""
_LATE = 5.0  # agents end an attempt by themselves once its seconds to stop are over
_SECONDS_BETWEEN_PROGRESS = 1.0


class Reconciler:
    """Keeps in memory how long it has waited for what, and nothing that matters."""

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
        self._told_at: dict[str, float] = {}
        self._moved = False
        self._progress: list[tuple[Job, Progress]] = []
        self._notes: list[tuple[Job, str]] = []

    def reconcile(self) -> tuple[Mapping[str, Status], list[Job]]:
        """Looks at every attempt once; returns them as they were found, and the jobs that are active then.

        Raises Unavailable and Superseded.
        """
        try:
            # Races closed by looking here first and at the rows then. An attempt that another scheduler
            # launches in between is in its row and launched again, which is harmless; it is not taken for a
            # stray. And where one has ended because somebody asked for that, the row says so.
            attempts = self.cluster.attempts()
        except Unavailable:
            self._watches.clear()  # what nobody could see is held against nobody
            raise
        active, self._moved = self.store.active(), False
        for job in active:
            with self._guarded(job.id):
                self._reconcile(job, attempts.get(name_of(job)))
        told = self._write()
        self._end_strays(attempts, {name_of(job) for job in active})
        self._forget_others(active)
        if self._moved:
            return attempts, self.store.active()
        return attempts, [replace(job, progress=told.get(job.id, job.progress)) for job in active]

    def launch(self, job: Job) -> None:
        """Launches the start that the row names; harmless when it was launched before."""
        self.cluster.launch(launch_of(job, self.settings, self.store))

    @contextmanager
    def _guarded(self, what: str) -> Iterator[None]:
        """What goes wrong with one must not hold up the others."""
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
            # Nothing is there to be saved. Its place is given back in the next round.
            self._come_to(job, before_launch(job))
        else:
            # In every round: an agent that was away may not have heard the last one.
            self.cluster.stop(name_of(job), seconds=_seconds_to_stop(job))
            self._tell(job, status)

    def _not_launched(self, job: Job) -> None:
        """Whoever wrote the row died before the launch, or the cluster has lost its memory."""
        if job.stopping:
            self._come_to(job, before_launch(job))
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
        # Each watch that may run is looked at: one that is not looked at stands still.
        if failed:
            ends |= self._watches.seconds("failed", *key) >= SECONDS_TO_SPEAK
        if job.stopping:
            allowed = _seconds_to_stop(job)
            ends |= self._watches.seconds("stopping", *key, allowed) >= allowed + _LATE
        if status.phase is not Phase.RUNNING:
            limit = self.settings.start_seconds
            if self._watches.seconds("starting", *key) >= limit:
                self._overdue.setdefault(key, start_timeout(limit, status.message))
        return ends or key in self._overdue

    def _end(self, job: Job, status: Status) -> None:
        self.cluster.end(name_of(job))
        waited = self._watches.seconds("ending", name_of(job), status.start)
        late = self._overdue_record(job, status)
        if late and status.phase is Phase.PLACING:
            self._conclude(job, status, late)  # nothing runs that would have to be waited for
        elif waited >= SECONDS_TO_END:
            self._conclude(job, status, (*status.exits, *late, not_ended(SECONDS_TO_END)))

    def _ended(self, job: Job, status: Status) -> None:
        late = self._overdue_record(job, status) if cause(status.exits) is None else ()
        self._conclude(job, status, (*status.exits, *late))

    def _overdue_record(self, job: Job, status: Status) -> tuple[ExitRecord, ...]:
        known = self._overdue.get((name_of(job), status.start))
        return () if known is None else (known,)

    def _conclude(self, job: Job, status: Status, exits: tuple[ExitRecord, ...]) -> None:
        result = outcome(job, exits, cancelled=job.cancel_requested_at is not None)
        if isinstance(result, Restart):
            self._restart(job, result)
        elif self._come_to(job, result, status.progress) and status.ended:
            self.cluster.release(name_of(job))  # what is not released now is a stray in the next round

    def _come_to(self, job: Job, end: Outcome, progress: Progress | None = None) -> bool:
        changes: Changes = {
            "reason": end.reason,
            "error": end.error,
            "failures": end.failures,
            "last_failure": end.last_failure,
        }
        if progress is not None:
            changes["progress"] = progress
        # Race closed: a pause or a preemption that is younger than our look. The state is no longer what we
        # saw, nothing changes, and the next round takes the attempt's end for what it means by then.
        moved = self.store.move(job, end.state, **changes)
        self._moved |= moved
        if moved and end.state.ended:
            self._on_end()
        return moved

    def _restart(self, job: Job, again: Restart) -> None:
        # Race closed: a cancel, pause or preemption that is younger than our look: as above.
        if not self.store.restart(
            job,
            reason=again.reason,
            failures=again.failures,
            last_failure=again.last_failure,
            restarts=again.restarts,
        ):
            return
        try:
            append_line(run_folder(self.settings, job), job.attempt, f"syncbn: {again.reason}")
        except OSError as error:
            log.warning("job %s: its log does not take the line about its restart: %s", job.id, error)
        self.launch(replace(job, start=job.start + 1, failures=again.failures, restarts=again.restarts))

    # What is shown of a job that is at work

    def _follow(self, job: Job, status: Status) -> None:
        trains = status.phase is Phase.RUNNING and status.progress is not None
        if job.state is not State.STARTING:
            self._tell(job, status)
            if trains:
                self._notes.append((job, ""))  # it says no more that it starts again
        elif trains:
            self._moved |= self.store.move(job, State.RUNNING, progress=status.progress)
        else:
            self._notes.append((job, _starting(job, status.message)))

    def _tell(self, job: Job, status: Status) -> None:
        """Notes progress, for all jobs to be written at once, and seldom enough for any number of jobs."""
        now = self._clock()
        if status.progress is None or status.progress == job.progress:
            return
        if now - self._told_at.get(job.id, float("-inf")) >= _SECONDS_BETWEEN_PROGRESS:
            self._told_at[job.id] = now
            self._progress.append((job, status.progress))

    def _write(self) -> dict[str, Progress]:
        progress, self._progress = self._progress, []
        notes, self._notes = self._notes, []
        self.store.write_progress(progress)
        self.store.note_all(notes)
        return {job.id: told for job, told in progress}

    # What belongs to no job, or no longer

    def _end_strays(self, attempts: Mapping[str, Status], current: set[str]) -> None:
        """Whoever was to end them, or to give back their place, died before; or they were given up."""
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
        self._told_at = {job_id: told for job_id, told in self._told_at.items() if job_id in jobs}


def _seconds_to_stop(job: Job) -> float:
    return SECONDS_TO_STOP if job.cancel_requested_at is None else SECONDS_TO_CANCEL


def _starting(job: Job, message: str) -> str:
    assert job.workers is not None
    said = starting_on(job.workers)
    if job.restarts:
        said = starting_again(job.restarts[-1], job.failures, job.spec["retries"])
    return f"{said}: {message}" if message else said


def starting_on(workers: int) -> str:
    return f"starting on {count(workers, 'worker')}"
