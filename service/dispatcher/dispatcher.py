"""The dispatcher's loop: reconcile → admit → launch; other threads create runs, archive and clean up.

No essential state is kept in memory between two rounds. Every step is written to the database before it is
taken, and its result is read from the cluster, so the process may die at any moment and start again.
A server that does not answer does not fail a job: the round skips what needs it, the next round tries again.
Calls to MLflow and removals have their own threads (dispatcher.runs, dispatcher.finisher,
dispatcher.cleaner), so no round waits for them.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from time import monotonic

from service.backends.cluster import Cluster, Node, Phase, Status
from service.backends.tracking import Results
from service.dispatcher.backoffs import Backoffs
from service.dispatcher.cleaner import Cleaner
from service.dispatcher.expectations import Expectations, Situation
from service.dispatcher.figures import Figures
from service.dispatcher.finisher import Finisher
from service.dispatcher.reconciler import Reconciler, starting_on
from service.dispatcher.round_timer import RoundTimer
from service.dispatcher.runs import Runs
from service.dispatcher.tries import succeeds
from service.errors import Unavailable
from service.jobs.job import BY_TIME_LIMIT, Job, State
from service.jobs.outcomes import BACKS_OFF, waited_too_long, waits_before_start
from service.jobs.sweep import SweepLimits
from service.queue.notices import Listener
from service.queue.store import Store
from service.queue.waiting import Queue, WaitingJobs, needs_run
from service.scheduling.preemption import GROWS_EVERY, Preempt
from service.scheduling.scheduler import Decision, Start, Wait, schedule, standing
from service.settings import Settings
from service.webhooks.deliverer import Deliverer
from training.protocol import Superseded

log = logging.getLogger(__name__)

POLL_SECONDS = 0.5
"""Time between two rounds while jobs are active. Changes of the cluster or the queue start one at once."""
SLOW_POLL_SECONDS = 5.0
"""Time between two looks at the queue if nothing is heard, and between two rounds while nothing is active."""
_LEAST_SECONDS = 0.05  # between the beginnings of two rounds, however much is heard
_SECONDS_TO_LEAVE = 3.0  # for the threads, when the dispatcher ends

Outline = dict[str, tuple[Phase, int, int, bool]]


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """All that the scheduler's decisions depend on. Equal inputs give equal decisions.

    queue: compared by identity. held: why jobs may not start now, by job id.
    """

    queue: Queue
    held: Mapping[str, str]
    active: tuple[tuple[object, ...], ...]
    nodes: Sequence[Node]
    sweeps: Mapping[str, SweepLimits]


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
        self._backoffs = Backoffs(clock)
        self.queue = WaitingJobs(store=store)
        self._changed = threading.Event()  # the queue, as far as anybody says
        self._seen: tuple[Outline, Sequence[Node]] = {}, ()
        self._decided: Inputs | None = None  # by the last round, if it only let jobs wait
        self._idle = False  # whether the last round has left nothing to do: an idle service hardly computes
        self._look = False  # whether the last round has changed the queue
        self._calm = False  # whether the next round may come late, because nothing runs or begins to
        self.runs = Runs(store, results, on_run=self._on_change, clock=clock)
        self.figures = Figures(store, clock)
        self.expectations = Expectations(store, self.figures, clock)
        self.finisher = Finisher(settings, store, results, self.runs.is_at_work_on)
        self.deliverer = Deliverer(settings, store)
        self.cleaner = Cleaner(settings, store, results, on_done=self._on_change, clock=clock)
        self.reconciler = Reconciler(settings, store, cluster, on_end=self.finisher.wake, clock=clock)

    def run(
        self, stop: threading.Event, timer: RoundTimer | None = None, *, poll_seconds: float = POLL_SECONDS
    ) -> None:
        """Blocks until `stop` is set. Raises Superseded once another scheduler has taken over.

        timer: times each round.
        """
        timer, looked_at = timer or RoundTimer(), -math.inf
        listener = self.store.listener(self._on_change)
        with _in_threads(self.runs, self.finisher, self.deliverer, self.cleaner, listener):
            while not stop.is_set():
                began = monotonic()
                slow_poll = SLOW_POLL_SECONDS if listener.listens else poll_seconds
                look = self._changed.is_set() or began - looked_at >= slow_poll
                if look:
                    looked_at = began
                with timer.round():
                    self.round(look=look)
                took = monotonic() - began
                self._note_figures(took)
                # With thousands of jobs, rounds take at most half of the time.
                self._wait(
                    stop,
                    max(slow_poll if self._calm else poll_seconds, took),
                    at_least=max(_LEAST_SECONDS, took),
                )

    def round(self, *, look: bool = True) -> None:
        """Handles every job once. Raises only Superseded: other errors are logged, the next round retries.

        look: whether to look for changes of the queue that others have made.
        """
        if look:
            self._changed.clear()  # before the queue is read, so that no change meanwhile is missed
        look |= self._look
        self._look = self._calm = False
        try:
            if self._idle and not self._has_work(attempts := self.cluster.attempts()):
                self._seen, self._calm = (_outline(attempts), self.cluster.nodes()), True
                return
            self._idle = False
            attempts, active = self.reconciler.reconcile()
            self.cleaner.keep_from(_running(attempts))
            nodes = self.cluster.nodes()
            self._seen = _outline(attempts), nodes
            starts = self._admit(attempts, active, nodes, look=look or self.reconciler.moved)
            self._calm = not (attempts or active or starts)
            self._idle = self._calm and not self._has_work(attempts)
        except Superseded:
            raise
        except Exception as error:  # a bug in one round must not stop all jobs
            self._note_failure(error)

    def _note_figures(self, seconds: float) -> None:
        if not self._idle:
            self.figures.round(seconds)
        if self.figures.is_due():
            with suppress(Unavailable):
                self.figures.hosts(self.cluster.nodes())
            self.figures.write()

    def _has_work(self, attempts: Mapping[str, Status]) -> bool:
        return bool(attempts) or self.store.has_unended()

    def _wait(self, stop: threading.Event, seconds: float, *, at_least: float) -> None:
        """Blocks until the next round is due, or a change needs one at once; progress of ranks does not.

        at_least: how long to wait even if the queue has changed.
        """
        earliest, deadline = monotonic() + at_least, monotonic() + seconds
        try:
            while not stop.is_set() and (left := deadline - monotonic()) > 0:
                self.cluster.wait(left)
                if monotonic() >= deadline:
                    return
                if self._changed.is_set():
                    stop.wait(max(earliest - monotonic(), 0.0))
                    return
                if (_outline(self.cluster.attempts()), self.cluster.nodes()) != self._seen:
                    return
        except Superseded:
            raise
        except Exception as error:
            log.warning("cannot wait for the cluster: %s", error)
            stop.wait(seconds)

    def _on_change(self) -> None:
        self._changed.set()
        self.cluster.wake()

    def _note_failure(self, error: Exception) -> None:
        self.figures.failed_round()
        if not isinstance(error, Unavailable):
            log.error("a round of the dispatcher failed", exc_info=error)
            return
        log.warning("%s", error)
        try:
            waiting = [job for job in self.store.active() if job.state is State.STARTING]
            self.store.note_all((job, f"waits: {error}") for job in [*self.queue.look().jobs, *waiting])
        except Unavailable as another:
            log.warning("%s", another)

    # Admit

    def _cancel_overdue(self, queue: Queue) -> Queue:
        """Cancels the jobs whose time limit for the queue has passed; returns the queue without them."""
        now = self._now()
        unknown = {
            job.id: now + job.time_limit.queue
            for job in queue.limited
            if job.time_limit.queue is not None and job.waits_until is None
        }
        self.store.limit_waits(unknown)
        overdue = {job.id: reason for job in queue.limited if (reason := waited_too_long(job, now))}
        for job_id, reason in overdue.items():
            self.store.move(queue.by_id[job_id], State.CANCELLED, reason=reason, ended_by=BY_TIME_LIMIT)
        return self.queue.look() if unknown or overdue else queue

    def _admit(
        self, attempts: Mapping[str, Status], active: Sequence[Job], nodes: Sequence[Node], *, look: bool
    ) -> bool:
        """Starts, preempts and cancels jobs; returns whether something is to follow soon."""
        queue = self._cancel_overdue(self.queue.look() if look else self.queue.latest)
        self.runs.keep_only(queue.by_id)
        if not queue.jobs and not any(job.elastic for job in active):
            return False
        now, seconds_left = self._now(), _seconds_left(active)
        delays = self._backoffs.waiting(queue.backing_off)
        inputs = Inputs(
            queue=queue,
            held=self._without_run(queue.without_run)
            | _backing_off(queue.backing_off, delays)
            | self._not_cleaned(queue.from_scratch),
            active=standing(active, now=now, seconds_left=seconds_left),
            nodes=nodes,
            sweeps=self.store.sweep_limits(queue.of_sweeps) if queue.of_sweeps else {},
        )
        soon = bool(inputs.held or queue.limited)
        if inputs == self._decided:
            self._expect(inputs, active, attempts, delays)
            return soon
        ready = [job for job in queue.jobs if job.id not in inputs.held]
        decisions = schedule(ready, active, nodes, now=now, seconds_left=seconds_left, sweeps=inputs.sweeps)
        only_waits = all(isinstance(decision, Wait) for decision in decisions)
        self._decided = inputs if only_waits else None
        self._carry_out(decisions, queue, active, attempts, inputs.held)
        if only_waits:
            self._expect(inputs, active, attempts, delays)
        self._look = not only_waits
        return soon or not only_waits

    def _expect(
        self,
        inputs: Inputs,
        active: Sequence[Job],
        attempts: Mapping[str, Status],
        delays: Mapping[str, float],
    ) -> None:
        """Estimates when the jobs start, in a round in which all of them wait. No job depends on it."""
        situation = Situation(
            queue=inputs.queue,
            active=inputs.active,
            nodes=inputs.nodes,
            held={job_id: why for job_id, why in inputs.held.items() if job_id not in delays},
            delayed=frozenset(delays),
            sweeps=inputs.sweeps,
        )
        if inputs.queue.jobs:
            succeeds(
                "estimates of starts",
                lambda: self.expectations.update(situation, active, attempts, delays),
            )

    def _carry_out(
        self,
        decisions: Iterable[Decision],
        queue: Queue,
        active: Sequence[Job],
        attempts: Mapping[str, Status],
        held: Mapping[str, str],
    ) -> None:
        waiting, running = queue.by_id, {job.id: job for job in active}
        for decision in decisions:
            if isinstance(decision, Preempt):
                self.store.move(running[decision.job_id], State.PREEMPTING, reason=decision.reason)
        notes = {decision.job_id: decision.reason for decision in decisions if isinstance(decision, Wait)}
        alive = _running(attempts)
        for decision in decisions:
            if isinstance(decision, Start) and decision.job_id in alive:
                # Race closed: the scheduler that launched it died before ending it, or it does not end. The
                # next attempt would do the same work at the same time.
                notes[decision.job_id] = "waits: its last attempt has not ended yet"
            elif isinstance(decision, Start):
                self._start(waiting[decision.job_id], decision.workers)
        reasons = [(waiting[job_id], reason) for job_id, reason in {**notes, **held}.items()]
        self.store.note_all(reasons)
        self.queue.noted(reasons)

    def _without_run(self, without: Sequence[Job]) -> dict[str, str]:
        """Returns why jobs cannot get an MLflow run now, by job id. They block no other jobs meanwhile."""
        if not without:
            return {}
        failed, problem = self.runs.failed, self.runs.problem
        if problem:
            self.runs.request(without[0])  # its result shows when MLflow is back
        reasons = ((job.id, failed.get(job.id) or problem) for job in without)
        return {job_id: f"waits for MLflow: {why}" for job_id, why in reasons if why}

    def _not_cleaned(self, waiting: Sequence[Job]) -> dict[str, str]:
        """Returns why jobs wait that begin again from step 0, by id. They block no other jobs meanwhile."""
        self.cleaner.begin_again(waiting)
        return {job.id: "waits until its checkpoints are removed: it begins from step 0" for job in waiting}

    def _start(self, job: Job, workers: int) -> None:
        if needs_run(job):
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
            self.expectations.started(job)
            self.reconciler.launch(self.store.get(job.id))  # with its whole spec


def _backing_off(queue: Sequence[Job], delays: Mapping[str, float]) -> dict[str, str]:
    """Returns why jobs wait after a failure, by id. They block no other jobs meanwhile."""
    return {
        # The reason names the failure, unless another problem came in between.
        job.id: job.reason if BACKS_OFF in job.reason else f"starts {waits_before_start(job.backoff_seconds)}"
        for job in queue
        if job.id in delays
    }


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


def _running(attempts: Mapping[str, Status]) -> set[str]:
    """Returns the jobs whose attempts have not ended in the cluster."""
    return {name.rpartition("-")[0] for name, status in attempts.items() if not status.ended}


@contextmanager
def _in_threads(*workers: Runs | Finisher | Deliverer | Cleaner | Listener) -> Iterator[None]:
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
