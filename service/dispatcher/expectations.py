"""Estimates when waiting jobs start, writes what has changed, and measures how right it was."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from time import monotonic

from service.backends.cluster import Node, Status
from service.dispatcher.figures import Figures
from service.dispatcher.orders import name_of
from service.jobs.expected import ExpectedStart, expected_in
from service.jobs.job import Job, utc_now
from service.jobs.lengths import History, Length, of_active, of_queued
from service.jobs.sweep import SweepLimits
from service.queue.store import Store
from service.queue.waiting import Queue
from service.scheduling.estimates import FIRST, Estimate, estimate

EVERY_SECONDS = 5.0
"""Minimum time between two estimates."""
_SHARE = 0.05  # of the time of the scheduler that estimates may take


@dataclass(frozen=True, kw_only=True)
class Situation:
    """What estimates depend on, besides the lengths of jobs. queue: compared by identity."""

    queue: Queue
    active: tuple[tuple[object, ...], ...]
    nodes: Sequence[Node]
    held: Mapping[str, str]
    delayed: frozenset[str]
    sweeps: Mapping[str, SweepLimits]


class Expectations:
    """The estimates of one scheduler. In memory it keeps what it has written, to write only what differs."""

    def __init__(self, store: Store, figures: Figures, clock: Callable[[], float] = monotonic) -> None:
        self._store, self._figures, self._clock = store, figures, clock
        self._history = History()
        self._written: dict[str, ExpectedStart] | None = None
        self._due = 0.0
        self._situation: Situation | None = None
        self._ends: dict[str, float] = {}

    def update(
        self,
        situation: Situation,
        active: Sequence[Job],
        attempts: Mapping[str, Status],
        delays: Mapping[str, float],
    ) -> None:
        """Estimates anew if it is time and something has changed, and writes the notable changes.

        delays: how long jobs still wait after a failure, by id. Raises Superseded and Unavailable.
        """
        began = self._clock()
        if began < self._due:
            return
        self._due = began + EVERY_SECONDS
        lengths = self._of_active(active, attempts)
        ends = {job_id: began + length.seconds for job_id, length in lengths.items()}
        if situation == self._situation and not self._moved(ends, began):
            return
        lengths |= self._of_queued(situation.queue)
        found = estimate(
            situation.queue.jobs[:FIRST],
            active,
            situation.nodes,
            lengths=lengths,
            delays=delays,
            held=situation.held,
            sweeps=situation.sweeps,
        )
        self._write(situation.queue, found)
        self._situation, self._ends = situation, ends
        # On a cluster with a thousand machines an estimate takes about half a second.
        self._due = max(self._due, self._clock() + (self._clock() - began) / _SHARE)

    def started(self, job: Job) -> None:
        """Counts how far the first and the last estimate for this job were from now, when it starts."""
        expected = self._known().pop(job.id, None)
        if expected is not None and expected.at is not None and expected.first is not None:
            now = utc_now()
            self._figures.start_error("first", abs((now - expected.first).total_seconds()))
            self._figures.start_error("last", abs((now - expected.at).total_seconds()))

    def _moved(self, ends: Mapping[str, float], now: float) -> bool:
        """Returns whether a running job ends at notably another time than was estimated last."""
        if ends.keys() != self._ends.keys():
            return True
        return any(abs(end - self._ends[each]) > max(1.0, 0.05 * (end - now)) for each, end in ends.items())

    def _of_active(self, active: Sequence[Job], attempts: Mapping[str, Status]) -> dict[str, Length]:
        ran = {job.id: job.ran_seconds for job in active}
        for job in active:
            if (status := attempts.get(name_of(job))) is not None:
                ran[job.id] += status.seconds
        self._history.set_running((job, ran[job.id]) for job in active)
        lengths = {job.id: of_active(job, ran[job.id], self._history) for job in active}
        return {job_id: length for job_id, length in lengths.items() if length is not None}

    def _of_queued(self, queue: Queue) -> dict[str, Length]:
        self._history.add(self._store.succeeded(self._history.latest))
        lengths = {job.id: of_queued(job, self._history) for job in queue.jobs[:FIRST]}
        return {job_id: length for job_id, length in lengths.items() if length is not None}

    def _known(self, queue: Queue | None = None) -> dict[str, ExpectedStart]:
        """Returns what is written of the jobs; of a scheduler that has just begun, by the one before it."""
        if self._written is None:
            if queue is None:
                return {}
            self._written = {job.id: job.expected for job in queue.jobs if job.expected is not None}
        return self._written

    def _write(self, queue: Queue, found: Mapping[str, Estimate]) -> None:
        now, jobs = utc_now(), queue.by_id
        known = {job_id: start for job_id, start in self._known(queue).items() if job_id in jobs}
        new = {job_id: _expected(each, known.get(job_id), now) for job_id, each in found.items()}
        changed = {job_id: start for job_id, start in new.items() if start.differs(known.get(job_id), now)}
        gone = [job_id for job_id in known if job_id not in new]
        changes = [(jobs[job_id], start) for job_id, start in changed.items()]
        self._store.write_expected([*changes, *((jobs[job_id], None) for job_id in gone)])
        self._written = {job_id: changed.get(job_id) or known[job_id] for job_id in new}


def _expected(found: Estimate, before: ExpectedStart | None, now: datetime) -> ExpectedStart:
    """Returns the estimate as it is written. The first moment stays that of the first estimate."""
    start = expected_in(found.seconds, found.because, now, at_latest=found.at_latest)
    return start if before is None or before.first is None else replace(start, first=before.first)
