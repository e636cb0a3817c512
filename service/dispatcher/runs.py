"""Creates the jobs' runs in the tracking server, in its own thread: a server that hangs delays no round.

The row names the experiment before the run is created, and the run afterwards: if the process dies in
between, whoever archives the job finds the run. A job without a run is not started. The run of a sweep is
created with that of its first job. The run of a job that was retried is reopened in the same way.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Container
from contextlib import suppress
from time import monotonic

from service.backends.tracking import Results
from service.dispatcher.run_page import run_tags, spec_text, sweep_tags, sweep_text
from service.errors import NotFound, Refused, Unavailable
from service.jobs.job import Job, Run, State
from service.queue.store import Store
from training.protocol import SWEEP_TAG, Superseded

log = logging.getLogger(__name__)

END_STATUS = {State.SUCCEEDED: "FINISHED", State.FAILED: "FAILED", State.CANCELLED: "KILLED"}
PARENT_TAG = "mlflow.parentRunId"
"""MLflow's own tag, by which its pages show a run below its parent."""
_SECONDS_BETWEEN = 1.0
_SECONDS_TO_ANSWER = 5.0


class Runs:
    """Creates runs on request. Thread-safe.

    on_run: called when a run has been written to its job's row, or could not be created.
    """

    def __init__(
        self,
        store: Store,
        results: Results,
        *,
        on_run: Callable[[], object],
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._store, self._results, self._on_run, self._clock = store, results, on_run, clock
        self._lock = threading.Lock()
        self._requested: dict[str, Job] = {}
        self._failed: dict[str, str] = {}
        self._problem = ""
        self._at_work_on: Job | None = None
        self._called_at: float | None = None
        self._woken, self._stopped = threading.Event(), False

    # Called by rounds

    def request(self, job: Job) -> None:
        """Requests an open run for the job; returns at once. Idempotent."""
        with self._lock:
            if job.id not in self._requested:
                self._requested[job.id] = job
                self._woken.set()

    def keep_only(self, waiting: Container[str]) -> None:
        """Forgets all jobs except those with these ids."""
        with self._lock:
            self._requested = {job_id: job for job_id, job in self._requested.items() if job_id in waiting}
            self._failed = {job_id: why for job_id, why in self._failed.items() if job_id in waiting}

    @property
    def failed(self) -> dict[str, str]:
        """Why the last try to create a run failed, by job id. Failed tries are repeated."""
        with self._lock:
            return dict(self._failed)

    @property
    def problem(self) -> str:
        """Why no run can be created now; "" if the server answers, or may still answer."""
        with self._lock:
            if self._called_at is not None and self._clock() - self._called_at >= _SECONDS_TO_ANSWER:
                return f"it has not answered for {_SECONDS_TO_ANSWER:g} s"
            return self._problem

    # Called by the finisher

    def is_at_work_on(self, id: str) -> bool:
        """Returns whether the run of this job, or that of this sweep, may be created or reopened just now.

        Nothing is created or reopened for a job that had ended before this was called and is not retried.
        """
        with self._lock:
            job = self._at_work_on
            return job is not None and id in {job.id, job.sweep_id}

    # The thread

    def run(self) -> None:
        """Blocks until `stop` is called, or another scheduler has taken over."""
        with suppress(Superseded):  # the dispatcher's rounds hear of it, too
            while not self._stopped:
                self._woken.wait()
                self._woken.clear()
                if not self.create_all() and not self._stopped:
                    self._woken.wait(_SECONDS_BETWEEN)
                    self._woken.set()

    def stop(self) -> None:
        self._stopped = True
        self._woken.set()

    def create_all(self) -> bool:
        """Tries once to create every requested run; returns whether none is left. Raises Superseded."""
        with self._lock:
            requested = list(self._requested.values())
        for job in requested:
            if self._stopped:
                break
            self._try(job)
        with self._lock:
            return not self._requested

    def _try(self, job: Job) -> None:
        away, why = False, ""
        with self._lock:
            self._called_at, self._at_work_on = self._clock(), job
        try:
            self._create(job)
        except Superseded:
            raise
        except Unavailable as error:
            away, why = error.name == "MLflow", str(error).removeprefix("MLflow is not reachable: ")
        except Refused as error:
            why = str(error)
        except Exception as error:  # an invalid answer must not end the thread
            log.exception("job %s: its run could not be created", job.id)
            why = f"{type(error).__name__}: {error}"
        with self._lock:
            self._called_at = self._at_work_on = None
            self._problem = why if away else ""
            self._failed.pop(job.id, None)
            if not why:
                self._requested.pop(job.id, None)
            elif job.id in self._requested:  # else it does not wait any more, and nobody would try again
                self._failed[job.id] = why
        self._on_run()

    def _create(self, job: Job) -> None:
        job = self._store.get(job.id)  # with its whole spec
        if job.state.ended:
            return
        if job.run is not None:
            self._reopen(job, job.run)
            return
        experiment = job.spec["tracking"]["experiment"]
        tags = run_tags(job)
        if job.sweep_id is not None:
            tags[PARENT_TAG] = self._sweep_run(job.sweep_id, experiment).run_id
        if not self._store.set_experiment(job.id, self._results.ensure_experiment(experiment)):
            return
        run = self._results.ensure_run(job_id=job.id, name=job.name, experiment=experiment, tags=tags)
        self._upload(run, "spec.yaml", spec_text(job))
        self._store.set_run(job.id, run.experiment_id, run.run_id)
        try:
            now = self._store.get(job.id)
        except NotFound:  # Race closed: the job was cancelled and deleted meanwhile.
            self._results.end(run, END_STATUS[State.CANCELLED])
            return
        # Race closed: the job was cancelled and archived before its row named the run, which has to be ended.
        if now.state.ended:
            self._results.end(run, END_STATUS[now.state])
        elif (
            now.run != run
        ):  # Race closed: another scheduler has created a run meanwhile; the row names the first one.
            self._results.end(run, END_STATUS[State.CANCELLED])

    def _reopen(self, job: Job, run: Run) -> None:
        """Reopens the run of a job that was retried, and that of its sweep."""
        parent = None if job.sweep_id is None else self._store.get_sweep(job.sweep_id).run
        for each in (parent, run):
            try:
                if each is not None:
                    self._results.reopen(each)
            except Refused as error:  # the run was deleted; the job need not wait for this
                log.warning("a run is not reopened: %s", error)
        self._store.mark_reopened(job)
        now = self._store.get(job.id)
        if now.state.ended:
            # Race closed: the job was cancelled and archived before its run was reopened.
            self._results.end(run, END_STATUS[now.state])

    def _sweep_run(self, sweep_id: str, experiment: str) -> Run:
        """Returns the sweep's run, which is the parent of its jobs' runs; creates it if there is none."""
        sweep = self._store.get_sweep(sweep_id)
        if sweep.run is not None:
            return sweep.run
        self._store.set_sweep_experiment(sweep_id, self._results.ensure_experiment(experiment))
        run = self._results.ensure_run(
            job_id=sweep_id, name=sweep.name, experiment=experiment, tags=sweep_tags(sweep), tag=SWEEP_TAG
        )
        self._upload(run, "sweep.yaml", sweep_text(sweep))
        self._store.set_sweep_run(sweep_id, run.experiment_id, run.run_id)
        now = self._store.get_sweep(sweep_id)
        if now.run is not None and now.run != run:
            # Race closed: another scheduler has created a run meanwhile; the row names the first one.
            self._results.end(run, END_STATUS[State.CANCELLED])
        elif now.archived_at is not None:
            # Race closed: all jobs were cancelled, and the sweep archived, before its row named the run.
            self._results.end(run, END_STATUS[State.CANCELLED])
        return now.run or run

    def _upload(self, run: Run, path: str, text: str) -> None:
        try:
            self._results.upload(run, path, text)
        except Refused as error:  # it is in the database, too, so the job need not wait for this
            log.warning("run %s has no %s: %s", run.run_id, path, error)
