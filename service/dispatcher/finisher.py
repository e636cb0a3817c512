"""Archives ended jobs and sweeps in its own thread: uploads logs and end status to the tracking server.

The row says what is left to do, so the process may die at any moment. Archiving is idempotent.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial

from service import logs
from service.backends.tracking import Results
from service.dispatcher.runs import END_STATUS
from service.dispatcher.tries import succeeds
from service.errors import Refused, ServiceError
from service.job_logs import JobLogs, LogFile
from service.jobs.job import Job, Run, State
from service.jobs.sweep import Sweep, SweepState
from service.queue.store import Store
from service.settings import Settings
from training.backoff import Backoff
from training.protocol import JOB_TAG, SWEEP_TAG, Superseded

log = logging.getLogger(__name__)

_SECONDS_BETWEEN, _MOST_SECONDS_BETWEEN = 5.0, 30.0
"""The finisher is woken when a job ends. It polls for jobs cancelled while they waited, and for retries."""


class Finisher:
    """Archives every job that has ended and is not archived yet.

    is_at_work_on: whether another thread may be creating or reopening the run of the job or sweep of this id.
    """

    def __init__(
        self, settings: Settings, store: Store, results: Results, is_at_work_on: Callable[[str], bool]
    ) -> None:
        self._settings, self._store, self._results = settings, store, results
        self._is_at_work_on = is_at_work_on
        self._woken, self._stopped = threading.Event(), False

    def run(self) -> None:
        """Blocks until `stop` is called, or another scheduler has taken over."""
        backoff = Backoff(_SECONDS_BETWEEN, _MOST_SECONDS_BETWEEN)
        with suppress(Superseded):  # the dispatcher's rounds hear of it, too
            while not self._stopped:
                if self.finish_all():
                    backoff.reset()
                self._woken.wait(backoff.next())
                self._woken.clear()

    def wake(self) -> None:
        """Tells the thread that a job has ended."""
        self._woken.set()

    def stop(self) -> None:
        self._stopped = True
        self._woken.set()

    def finish_all(self) -> bool:
        """Tries once to archive every ended job and sweep; returns whether none is left.

        Raises Superseded.
        """
        try:
            jobs = self._store.unarchived()
            sweeps = self._store.unarchived_sweeps()
        except ServiceError as error:
            log.warning("%s", error)
            return False
        left: list[tuple[str, str, Callable[[], None]]] = [
            *(("job", job.id, partial(self._finish, job)) for job in jobs),
            *(("sweep", sweep.id, partial(self._finish_sweep, sweep, state)) for sweep, state in sweeps),
        ]
        done = [self._try(*each) for each in left if not self._stopped]
        return all(done)

    def _try(self, kind: str, id: str, finish: Callable[[], None]) -> bool:
        # Race closed: a run that is created or reopened after its end has been written.
        return not self._is_at_work_on(id) and succeeds(f"{kind} {id} is not archived yet", finish)

    def _finish_sweep(self, sweep: Sweep, state: SweepState) -> None:
        with _refusal_logged(f"sweep {sweep.id}"):
            run = sweep.run
            if run is None and (run := self._find_run(sweep, SWEEP_TAG)) is not None:
                self._store.set_sweep_run(sweep.id, run.experiment_id, run.run_id)
            if run is not None:
                self._results.end(run, END_STATUS[State(state)])
                self._end_others(sweep.id, run, SWEEP_TAG)
        self._store.mark_sweep_archived(sweep.id)

    def _finish(self, job: Job) -> None:
        with logs.about(job_id=job.id):
            self._archive(job)

    def _archive(self, job: Job) -> None:
        run = job.run
        with _refusal_logged(f"job {job.id}"):
            if run is None and (run := self._find_run(job)) is not None:
                self._store.set_run(job.id, run.experiment_id, run.run_id)
        if run is not None:
            for attempt in range(1, job.attempt + 1):
                with _refusal_logged(f"job {job.id}"):
                    self._upload(job, run, attempt)
            with _refusal_logged(f"job {job.id}"):
                self._results.end(run, END_STATUS[job.state])
                self._end_others(job.id, run)
        # Race closed: the job was retried meanwhile; its run must not say that it has ended.
        if not self._store.mark_archived(job) and run is not None:
            with _refusal_logged(f"job {job.id}"):
                self._results.reopen(run)

    def _find_run(self, of: Job | Sweep, tag: str = JOB_TAG) -> Run | None:
        """Returns the run that a scheduler created just before it died, so that no row names it."""
        if of.experiment_id is None:  # no scheduler has come so far
            return None
        return next(iter(self._results.open_runs(of.id, of.experiment_id, tag)), None)

    def _end_others(self, id: str, run: Run, tag: str = JOB_TAG) -> None:
        """Ends the runs that two schedulers created at once, one of which was superseded meanwhile."""
        for other in self._results.open_runs(id, run.experiment_id, tag):
            if other != run:
                self._results.end(other, END_STATUS[State.CANCELLED])

    def _upload(self, job: Job, run: Run, attempt: int) -> None:
        """Uploads the ranks' logs of the attempt. Older versions uploaded theirs themselves."""
        for each in JobLogs(self._settings.storage, self._results).of(job, attempt):
            if isinstance(each, LogFile):
                name = f"logs/attempt-{attempt}/{each.path.name}"
                with _refusal_logged(f"job {job.id}"):
                    self._results.upload_file(run, name, each.path)


@contextmanager
def _refusal_logged(what: str) -> Iterator[None]:
    """Logs a Refused and goes on: the run was deleted, so a retry would not help."""
    try:
        yield
    except Refused as error:
        log.warning("%s: its run accepts nothing more: %s", what, error)
