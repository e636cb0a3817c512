"""Removes in its own thread what deleted jobs leave, what new starts from step 0 must not find, and what
retention gives up, old entries of the audit log included.

The row says what is left to do, and goes last, so the process may die at any moment. A pass does a bounded
amount of work.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from datetime import datetime, timedelta
from functools import partial
from time import monotonic

from service.backends.tracking import Results
from service.cleanup.remains import Remains
from service.cleanup.retention import Position, Retention
from service.dispatcher.runs import END_STATUS
from service.dispatcher.tries import succeeds
from service.errors import Refused
from service.jobs.job import Job, State, utc_now
from service.queue.store import Store
from service.settings import Settings
from training.protocol import JOB_TAG, Superseded

log = logging.getLogger(__name__)

_SECONDS_BETWEEN = 5.0
_SECONDS_BETWEEN_RETENTION = 60.0
"""Between two passes of retention over all jobs; within one, `_SECONDS_BETWEEN` lie between two pages."""


class Cleaner:
    """Cleans up after jobs. Thread-safe.

    on_done: called when a job may start that waited for it.
    """

    def __init__(
        self,
        settings: Settings,
        store: Store,
        results: Results,
        *,
        on_done: Callable[[], object],
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._settings, self._store, self._results = settings, store, results
        self._on_done, self._clock = on_done, clock
        self._began, self._began_at = clock(), utc_now()
        self._retention = Retention(settings, store, self._now)
        self._position: Position | None = None
        self._next_retention = self._next_audit = clock()
        self._to_begin_again: dict[str, Job] = {}
        self._running: Collection[str] = ()
        self._lock = threading.Lock()
        self._woken, self._stopped = threading.Event(), False

    # Called by rounds

    def begin_again(self, jobs: Iterable[Job]) -> None:
        """Requests that these queued jobs lose their checkpoints; returns at once. Idempotent."""
        found = {job.id: job for job in jobs}
        with self._lock:
            new = found.keys() - self._to_begin_again.keys()
            self._to_begin_again = found
        if new:
            self._woken.set()

    def keep_from(self, running: Collection[str]) -> None:
        """Names the jobs whose attempts have not ended in the cluster: nothing of them is removed."""
        self._running = running

    # The thread

    def run(self) -> None:
        """Blocks until `stop` is called, or another scheduler has taken over."""
        with suppress(Superseded):  # the dispatcher's rounds hear of it, too
            while not self._stopped:
                self.clean_all()
                self._woken.wait(_SECONDS_BETWEEN)
                self._woken.clear()

    def stop(self) -> None:
        self._stopped = True
        self._woken.set()

    def clean_all(self) -> None:
        """Tries once to do all that is due. What fails is logged, and tried again. Raises Superseded."""
        with self._lock:
            again = list(self._to_begin_again.values())
        for job in again:
            self._try(f"job {job.id} cannot begin again yet", partial(self._begin_again, job))
        self._try("deleted jobs", self._remove_deleted)
        if not self._retention.policy.keeps_all and self._clock() >= self._next_retention:
            self._try("retention", self._retain)
        if self._clock() >= self._next_audit:
            self._try("the audit log keeps its old entries", self._age_audit)

    def _try(self, what: str, act: Callable[[], None]) -> None:
        if not self._stopped:
            succeeds(what, act)

    def _begin_again(self, job: Job) -> None:
        if job.id in self._running:
            return
        may = partial(self._store.is_to_begin_again, job.id)
        if not may():
            return
        job = self._store.get(job.id)  # with its whole spec
        Remains(self._settings, job, may).remove_for_new_start()
        if job.run is not None:
            try:
                # The curve of the new start has a run of its own. Race closed: killed here, the next try
                # finds the same run in the row.
                self._results.set_tag(job.run, JOB_TAG, f"{job.id}, until attempt {job.attempt}")
                self._results.end(job.run, END_STATUS[State.CANCELLED])
            except Refused as error:
                log.warning("job %s: its run accepts nothing more: %s", job.id, error)
        self._store.begin_again(job.id)
        self._on_done()

    def _remove_deleted(self) -> None:
        for job in self._store.deleted():
            if job.id not in self._running:
                self._try(f"job {job.id} is not deleted yet", partial(self._delete, job))
        self._store.remove_unused_code()

    def _delete(self, job: Job) -> None:
        if job.run is not None and (job.last_command or {}).get("with_run"):
            try:
                self._results.delete(job.run)
            except Refused as error:
                log.warning("job %s: its run is not deleted: %s", job.id, error)
        Remains(self._settings, job).remove_all()
        self._store.remove_job(job.id)

    def _retain(self) -> None:
        self._retention.finish()
        report = self._retention.apply(self._position)
        if report.items:
            log.info("retention has removed %d bytes of %d jobs", report.bytes, len(report.items))
        for problem in report.problems:
            log.warning("retention: %s", problem)
        self._position = report.next
        if self._position is None:
            self._next_retention = self._clock() + _SECONDS_BETWEEN_RETENTION

    def _age_audit(self) -> None:
        oldest = self._now() - timedelta(days=self._settings.retention_audit_days)
        if not self._store.remove_old_audit(oldest):  # otherwise the next pass goes on
            self._next_audit = self._clock() + _SECONDS_BETWEEN_RETENTION

    def _now(self) -> datetime:
        """Returns the time by the wall clock of when this began, so that a step of it removes nothing."""
        return self._began_at + timedelta(seconds=self._clock() - self._began)
