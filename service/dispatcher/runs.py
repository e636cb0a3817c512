"""Makes the jobs' runs in the tracking server, in a thread of its own: a server that hangs holds up no round.

A run that is made is in the job's row; a job without one is not started.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from time import monotonic

from service.backends.tracking import Results
from service.errors import Refused, Unavailable
from service.jobs.job import Job, State
from service.queue.store import Store

log = logging.getLogger(__name__)

END_STATUS = {State.SUCCEEDED: "FINISHED", State.FAILED: "FAILED", State.CANCELLED: "KILLED"}
_SECONDS_BETWEEN = 1.0
_SECONDS_TO_ANSWER = 5.0


class Runs:
    """`on_run` is called when a run is in its row, or cannot be had. Thread-safe."""

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
        self._asked: dict[str, Job] = {}
        self._failed: dict[str, str] = {}
        self._problem = ""
        self._called_at: float | None = None
        self._woken, self._stopped = threading.Event(), False

    # What rounds ask

    def ask(self, job: Job) -> None:
        """Has a run made for the job. Harmless when it was asked before."""
        with self._lock:
            if job.id not in self._asked:
                self._asked[job.id] = job
                self._woken.set()

    def keep(self, waiting: Iterable[str]) -> None:
        """Forgets all jobs but these."""
        kept = set(waiting)
        with self._lock:
            self._asked = {job_id: job for job_id, job in self._asked.items() if job_id in kept}
            self._failed = {job_id: why for job_id, why in self._failed.items() if job_id in kept}

    @property
    def failed(self) -> dict[str, str]:
        """Why jobs, by id, did not get a run the last time; it is tried again."""
        with self._lock:
            return dict(self._failed)

    @property
    def problem(self) -> str:
        """Why nobody gets a run now; "" if the server answers, or may still do so."""
        with self._lock:
            if self._called_at is not None and self._clock() - self._called_at >= _SECONDS_TO_ANSWER:
                return f"it has not answered for {_SECONDS_TO_ANSWER:g} s"
            return self._problem

    # The thread

    def run(self) -> None:
        """Works until `stop` is called."""
        while not self._stopped:
            self._woken.wait()
            self._woken.clear()
            if not self.make_all() and not self._stopped:
                self._woken.wait(_SECONDS_BETWEEN)
                self._woken.set()

    def stop(self) -> None:
        self._stopped = True
        self._woken.set()

    def make_all(self) -> bool:
        """Tries to make every run that was asked for once; whether none is left."""
        with self._lock:
            asked = list(self._asked.values())
        for job in asked:
            if self._stopped:
                break
            self._try(job)
        with self._lock:
            return not self._asked

    def _try(self, job: Job) -> None:
        away, why = False, ""
        with self._lock:
            self._called_at = self._clock()
        try:
            self._make(job)
        except Unavailable as error:
            away, why = error.name == "MLflow", str(error).removeprefix("MLflow is not reachable: ")
        except Refused as error:
            why = str(error)
        except Exception as error:  # a server that talks nonsense must not end the thread
            log.exception("job %s: its run could not be made", job.id)
            why = f"{type(error).__name__}: {error}"
        with self._lock:
            self._called_at = None
            self._problem = why if away else ""
            self._failed.pop(job.id, None)
            if why:
                self._failed[job.id] = why
            else:
                self._asked.pop(job.id, None)
        self._on_run()

    def _make(self, job: Job) -> None:
        experiment = job.spec["tracking"]["experiment"]
        run = self._results.ensure_run(job_id=job.id, name=job.name, experiment=experiment)
        self._store.set_run(job.id, run.experiment_id, run.run_id)
        now = self._store.get(job.id)
        # Race closed: a job that was cancelled and archived before its row named a run that had to be ended.
        if now.state.ended:
            self._results.end(run, END_STATUS[now.state])
        elif (
            now.run != run
        ):  # Race closed: another scheduler has made it one meanwhile; the row names the first.
            self._results.end(run, END_STATUS[State.CANCELLED])
