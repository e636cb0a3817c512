"""The dispatcher's loop: reconcile → admit → launch, with MLflow runs and archiving in other threads.

No essential state is kept in memory between two rounds. Every step is written to the database before it is
taken, and its result is read from the cluster, so the process may die at any moment and start again.
A server that does not answer does not fail a job: the round skips what needs it, the next round tries again.
Calls to MLflow have their own threads (dispatcher.runs, dispatcher.finisher), so no round waits for it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from time import monotonic

from service.backends.cluster import Cluster, Phase, Status
from service.backends.tracking import Results
from service.dispatcher.finisher import Finisher
from service.dispatcher.reconciler import Reconciler, starting_on
from service.dispatcher.round_timer import RoundTimer
from service.dispatcher.runs import Runs
from service.errors import Unavailable
from service.jobs.job import Job, State
from service.jobs.outcomes import waited_too_long
from service.queue.store import Store
from service.scheduling.preemption import GROWS_EVERY, Preempt
from service.scheduling.scheduler import Start, Wait, schedule
from service.settings import Settings
from training.protocol import Superseded

log = logging.getLogger(__name__)

POLL_SECONDS = 0.5  # for new jobs; changes in the cluster wake the loop at once
_SECONDS_TO_LEAVE = 3.0  # for the threads, when the dispatcher ends

Outline = dict[str, tuple[Phase, int, int, bool]]


class Dispatcher:
    """Runs the jobs of a queue. If several work on one queue at once, the cluster obeys the latest.

    now: the queue's clock (`SchedulerRow.clock`); by default `clock`.
    """

    def __init__(
        self,
        settings: Settings,
        store: Store,
        cluster: Cluster,
        results: Results,
        *,
        clock: Callable[[], float] = monotonic,
        now: Callable[[], float] | None = None,
    ) -> None:
        self.store, self.cluster = store, cluster
        self._now = now or clock
        self._run_created = threading.Event()
        self._seen: Outline = {}
        self._idle = False  # whether the last round has left nothing to do: an idle service hardly computes
        self.runs = Runs(store, results, on_run=self._on_run, clock=clock)
        self.finisher = Finisher(settings, store, results)
        self.reconciler = Reconciler(settings, store, cluster, on_end=self.finisher.wake, clock=clock)

    def run(
        self, stop: threading.Event, timer: RoundTimer | None = None, *, poll_seconds: float = POLL_SECONDS
    ) -> None:
        """Blocks until `stop` is set. Raises Superseded once another scheduler has taken over.

        timer: times each round.
        """
        timer = timer or RoundTimer()
        with _in_threads(self.runs, self.finisher):
            while not stop.is_set():
                began = monotonic()
                with timer.round():
                    self.round()
                # With thousands of jobs, rounds take at most half of the time.
                self._wait(stop, max(poll_seconds, monotonic() - began))

    def round(self) -> None:
        """Handles every job once. Raises only Superseded: other errors are logged, the next round retries."""
        self._run_created.clear()  # before the queue is read, so that no run created meanwhile is missed
        try:
            if self._idle and not self._has_work(self.cluster.attempts()):
                return
            self._idle = False
            attempts, active = self.reconciler.reconcile()
            self._seen = _outline(attempts)
            self._admit(attempts, active)
            self._idle = not self._has_work(attempts)
        except Superseded:
            raise
        except Exception as error:  # a bug in one round must not stop all jobs
            self._note_failure(error)

    def _has_work(self, attempts: Mapping[str, Status]) -> bool:
        return bool(attempts) or self.store.has_unended()

    def _wait(self, stop: threading.Event, seconds: float) -> None:
        """Blocks until the next round is due, or a change needs one at once; progress of ranks does not."""
        deadline = monotonic() + seconds
        try:
            while not stop.is_set() and (left := deadline - monotonic()) > 0:
                self.cluster.wait(left)
                if monotonic() >= deadline or self._run_created.is_set():
                    return
                if _outline(self.cluster.attempts()) != self._seen:
                    return
        except Superseded:
            raise
        except Exception as error:
            log.warning("cannot wait for the cluster: %s", error)
            stop.wait(seconds)

    def _on_run(self) -> None:
        self._run_created.set()
        self.cluster.wake()

    def _note_failure(self, error: Exception) -> None:
        if not isinstance(error, Unavailable):
            log.error("a round of the dispatcher failed", exc_info=error)
            return
        log.warning("%s", error)
        try:
            waiting = [job for job in self.store.active() if job.state is State.STARTING]
            self.store.note_all((job, f"waits: {error}") for job in [*self.store.queue(), *waiting])
        except Unavailable as another:
            log.warning("%s", another)

    # Admit

    def _without_overdue(self, queue: Sequence[Job]) -> list[Job]:
        """Cancels the jobs whose time limit for the queue has passed; returns the others."""
        now = self._now()
        self.store.limit_waits(
            {
                job.id: now + job.time_limit.queue
                for job in queue
                if job.time_limit.queue is not None and job.waits_until is None
            }
        )
        overdue = {job.id: reason for job in queue if (reason := waited_too_long(job, now))}
        for job in queue:
            if job.id in overdue:
                self.store.move(job, State.CANCELLED, reason=overdue[job.id])
        return [job for job in queue if job.id not in overdue]

    def _admit(self, attempts: Mapping[str, Status], active: Sequence[Job]) -> None:
        queue = self._without_overdue(self.store.queue())
        self.runs.keep_only(job.id for job in queue)
        if not queue and not any(job.elastic for job in active):
            return
        without_run = self._without_run(queue)
        ready = [job for job in queue if job.id not in without_run]
        nodes = self.cluster.nodes()
        decisions = schedule(
            ready,
            active,
            nodes,
            now=self._now(),
            seconds_left=_seconds_left(active),
            sweeps=self.store.sweep_limits(ready),
        )
        waiting, running = ({job.id: job for job in jobs} for jobs in (queue, active))
        for decision in decisions:
            if isinstance(decision, Preempt):
                self.store.move(running[decision.job_id], State.PREEMPTING, reason=decision.reason)
        notes = {decision.job_id: decision.reason for decision in decisions if isinstance(decision, Wait)}
        alive = _jobs_of(name for name, status in attempts.items() if not status.ended)
        for decision in decisions:
            if isinstance(decision, Start) and decision.job_id in alive:
                # Race closed: the scheduler that launched it died before ending it, or it does not end. The
                # next attempt would do the same work at the same time.
                notes[decision.job_id] = "waits: its last attempt has not ended yet"
            elif isinstance(decision, Start):
                self._start(waiting[decision.job_id], decision.workers)
        self.store.note_all((waiting[job_id], reason) for job_id, reason in {**notes, **without_run}.items())

    def _without_run(self, queue: Iterable[Job]) -> dict[str, str]:
        """Returns why jobs cannot get an MLflow run now, by job id. They block no other jobs meanwhile."""
        without = [job for job in queue if job.run is None]
        if not without:
            return {}
        failed, problem = self.runs.failed, self.runs.problem
        if problem:
            self.runs.request(without[0])  # its result shows when MLflow is back
        reasons = ((job.id, failed.get(job.id) or problem) for job in without)
        return {job_id: f"waits for MLflow: {why}" for job_id, why in reasons if why}

    def _start(self, job: Job, workers: int) -> None:
        if job.run is None:
            self.runs.request(job)  # takes a moment; the job keeps its share of this round
            return
        number = job.attempt + 1
        started = self.store.move(
            job,
            State.STARTING,
            attempt=number,
            workers=workers,
            grows_after=self._now() + GROWS_EVERY,
            reason=starting_on(workers),
        )
        if started:
            now = replace(job, state=State.STARTING, attempt=number, start=1, restarts=(), workers=workers)
            self.reconciler.launch(now)


def _outline(attempts: Mapping[str, Status]) -> Outline:
    """Returns the parts of the attempts whose change needs a round at once."""
    return {
        name: (status.phase, status.start, len(status.exits), status.progress is None)
        for name, status in attempts.items()
    }


def _seconds_left(jobs: Iterable[Job]) -> dict[str, float]:
    """Returns the remaining time of jobs, by id, where it is known."""
    return {
        job.id: job.progress.eta_seconds
        for job in jobs
        if job.progress is not None and job.progress.eta_seconds is not None
    }


def _jobs_of(attempts: Iterable[str]) -> set[str]:
    return {name.rpartition("-")[0] for name in attempts}


@contextmanager
def _in_threads(*workers: Runs | Finisher) -> Iterator[None]:
    """Runs the workers in threads until the context ends. One that hangs in a call ends with the process."""
    threads = [threading.Thread(target=each.run, name=type(each).__name__, daemon=True) for each in workers]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        for each in workers:
            each.stop()
        deadline = monotonic() + _SECONDS_TO_LEAVE
        for thread in threads:
            thread.join(max(deadline - monotonic(), 0.0))
