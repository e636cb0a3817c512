"""Takes jobs from the queue to their end: reconcile → admit → launch, and beside that runs and archives.

Nothing that matters is kept in memory between two rounds. What is to happen is written to the database
before it is done, and what has happened is looked up, so the process may die at any moment and start again.
A server that does not answer is not a job that failed: the round goes on without it, the next one asks again.
MLflow is asked in threads of their own (dispatcher.runs, dispatcher.finisher): no round waits for it.
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
from service.dispatcher.runs import Runs
from service.errors import Unavailable
from service.jobs.job import Job, State, utc_now
from service.queue.store import Store
from service.scheduling.preemption import GROWS_EVERY, Preempt
from service.scheduling.scheduler import Start, Wait, schedule
from service.settings import Settings
from training.protocol import Superseded

log = logging.getLogger(__name__)

POLL_SECONDS = 0.4  # for new jobs; what changes in the cluster is seen at once
_SECONDS_TO_LEAVE = 3.0

Outline = dict[str, tuple[Phase, int, int, bool]]


class Dispatcher:
    """One of possibly several on the same queue; of those at work at once, the cluster obeys the latest."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        cluster: Cluster,
        results: Results,
        *,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self.store, self.cluster = store, cluster
        self._has_run = threading.Event()
        self._seen: Outline = {}
        self.runs = Runs(store, results, on_run=self._on_run, clock=clock)
        self.finisher = Finisher(settings, store, results)
        self.reconciler = Reconciler(settings, store, cluster, on_end=self.finisher.wake, clock=clock)

    def run(self, stop: threading.Event, *, poll_seconds: float = POLL_SECONDS) -> None:
        """Works until `stop` is set. Raises Superseded once another scheduler has taken over."""
        with _in_threads(self.runs, self.finisher):
            while not stop.is_set():
                began = monotonic()
                self.round()
                # Where thousands of jobs wait and run, at most half of the time goes into rounds.
                self._wait(stop, max(poll_seconds, monotonic() - began))

    def round(self) -> None:
        """Looks at every job once. Raises Superseded alone: what else fails is logged and tried again."""
        self._has_run.clear()  # before the queue is read: one that is made meanwhile is not overlooked
        try:
            attempts, active = self.reconciler.reconcile()
            self._seen = _outline(attempts)
            self._admit(attempts, active)
        except Superseded:
            raise
        except Exception as error:  # a bug in one round must not end the service of all jobs
            self._note_failure(error)

    def _wait(self, stop: threading.Event, seconds: float) -> None:
        """Until it is time for the next round, or something is to be done at once: steps of ranks are not."""
        until = monotonic() + seconds
        try:
            while not stop.is_set() and (left := until - monotonic()) > 0:
                self.cluster.wait(left)
                if self._has_run.is_set() or _outline(self.cluster.attempts()) != self._seen:
                    return
        except Superseded:
            raise
        except Exception as error:
            log.warning("cannot wait for the cluster: %s", error)
            stop.wait(seconds)

    def _on_run(self) -> None:
        self._has_run.set()
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

    def _admit(self, attempts: Mapping[str, Status], active: Sequence[Job]) -> None:
        queue = self.store.queue()
        self.runs.keep(job.id for job in queue)
        if not queue and not any(job.elastic for job in active):
            return
        held_up = self._held_up(queue)
        able = [job for job in queue if job.id not in held_up]
        nodes = self.cluster.nodes()
        decisions = schedule(able, active, nodes, now=utc_now(), seconds_left=_seconds_left(active))
        waiting, running = ({job.id: job for job in jobs} for jobs in (queue, active))
        for decision in decisions:
            if isinstance(decision, Preempt):
                self.store.move(running[decision.job_id], State.PREEMPTING, reason=decision.reason)
        notes = {decision.job_id: decision.reason for decision in decisions if isinstance(decision, Wait)}
        alive = _jobs_of(name for name, status in attempts.items() if not status.ended)
        for decision in decisions:
            if isinstance(decision, Start) and decision.job_id in alive:
                # Race closed: whoever launched it died before it could be ended, or it does not end. The next
                # attempt would do the same work at the same time.
                notes[decision.job_id] = "waits: its last attempt has not ended yet"
            elif isinstance(decision, Start):
                self._start(waiting[decision.job_id], decision.workers)
        self.store.note_all((waiting[job_id], reason) for job_id, reason in {**notes, **held_up}.items())

    def _held_up(self, queue: Iterable[Job]) -> dict[str, str]:
        """Jobs that cannot have a run now, by id, and why: they keep no machine from the others meanwhile."""
        without = [job for job in queue if job.run is None]
        if not without:
            return {}
        failed, away = self.runs.failed, self.runs.problem
        if away:
            self.runs.ask(without[0])  # how else would it be seen that MLflow is back
        known = ((job.id, failed.get(job.id) or away) for job in without)
        return {job_id: f"waits for MLflow: {why}" for job_id, why in known if why}

    def _start(self, job: Job, workers: int) -> None:
        if job.run is None:
            self.runs.ask(job)  # there in a moment; its place is kept so long
            return
        number = job.attempt + 1
        started = self.store.move(
            job,
            State.STARTING,
            attempt=number,
            workers=workers,
            grows_after=utc_now() + GROWS_EVERY,
            reason=starting_on(workers),
        )
        if started:
            now = replace(job, state=State.STARTING, attempt=number, start=1, restarts=(), workers=workers)
            self.reconciler.launch(now)


def _outline(attempts: Mapping[str, Status]) -> Outline:
    """What of the attempts a round has to look at at once when it changes."""
    return {
        name: (status.phase, status.start, len(status.exits), status.progress is None)
        for name, status in attempts.items()
    }


def _seconds_left(jobs: Iterable[Job]) -> dict[str, float]:
    """What jobs still need, by their ids, where it is known."""
    return {
        job.id: job.progress.eta_seconds
        for job in jobs
        if job.progress is not None and job.progress.eta_seconds is not None
    }


def _jobs_of(attempts: Iterable[str]) -> set[str]:
    return {name.rpartition("-")[0] for name in attempts}


@contextmanager
def _in_threads(*workers: Runs | Finisher) -> Iterator[None]:
    """They end with the context, unless they hang in a call: that ends with the process."""
    threads = [threading.Thread(target=each.run, name=type(each).__name__, daemon=True) for each in workers]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        for each in workers:
            each.stop()
        until = monotonic() + _SECONDS_TO_LEAVE
        for thread in threads:
            thread.join(max(until - monotonic(), 0.0))
