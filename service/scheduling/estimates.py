"""When waiting jobs start: a replay of the scheduler's rules, from one end of a job to the next. Pure.

Every start in the replay is decided by the functions that `schedule` uses, on the machines as `schedule`
would see them then. With exact lengths, and until other jobs are submitted, the estimates are exact. Two
things are simplified: a job with a range of workers starts with its minimum, and one that has to shrink for
another does so at once.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from service.backends.cluster import Node
from service.jobs.job import Job, State
from service.jobs.lengths import Length
from service.jobs.sweep import SweepLimits
from service.scheduling import capacity, preemption, sweep_limits
from service.scheduling.allocation import allocate_least, fitting, in_order
from service.scheduling.capacity import Demand, Machines, Worker
from service.scheduling.reasons import count

FIRST = 200
"""Of how many jobs at the head of the queue the start is estimated."""
TOO_FAR = f"more than {FIRST} jobs ahead"
SECONDS_TO_STOP = 5.0
"""How long a job that was asked to stop is taken to need for its checkpoint."""

_MOST_VISITS = 60_000  # of machines and running jobs, in all: about half a second
_NO_SWEEPS: Mapping[str, SweepLimits] = MappingProxyType({})
_NONE: Mapping[str, float] = MappingProxyType({})
_NO_REASONS: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """When a job starts. seconds: from now; None: not known. because: what lets it start then, or why not.

    at_latest: it may start earlier, because not every length before it is known.
    """

    seconds: float | None
    because: str
    at_latest: bool = False


def estimate(
    queue: Sequence[Job],
    active: Sequence[Job],
    nodes: Sequence[Node],
    *,
    lengths: Mapping[str, Length],
    delays: Mapping[str, float] = _NONE,
    held: Mapping[str, str] = _NO_REASONS,
    sweeps: Mapping[str, SweepLimits] = _NO_SWEEPS,
) -> dict[str, Estimate]:
    """Returns an estimate for each of the first `FIRST` queued jobs, in scheduling order, by id.

    lengths: how long active jobs still run and queued ones will run, by id, where it is known. delays: how
    long jobs wait after a failure. held: why jobs may not start now, for a time that is not known.
    """
    fits_ever = fitting(capacity.empty(nodes))
    first = in_order(queue)[:FIRST]
    found = {job.id: Estimate(seconds=None, because=held[job.id]) for job in first if job.id in held}
    for job in first:
        if job.id not in found and not fits_ever(job):
            found[job.id] = Estimate(seconds=None, because="it does not fit into the cluster")
    waiting = [job for job in first if job.id not in found]
    replay = _Replay(nodes=nodes, lengths=lengths, delays=delays, sweeps=sweeps, waiting=waiting)
    replay.take(active)
    return {**found, **replay.run()}


@dataclass(kw_only=True)
class _Replay:
    """The queue and the cluster at a moment `now`, in seconds from the beginning.

    ends: when each running job ends; infinity: not known. loose: running jobs that may end earlier. cause:
    what happened last; the id of the job that ended, or a text.
    """

    nodes: Sequence[Node]
    lengths: Mapping[str, Length]
    delays: Mapping[str, float]
    sweeps: Mapping[str, SweepLimits]
    waiting: list[Job]
    now: float = 0.0
    running: dict[str, Job] = field(default_factory=dict)
    ends: dict[str, float] = field(default_factory=dict)
    loose: set[str] = field(default_factory=set)
    found: dict[str, Estimate] = field(default_factory=dict)
    _because: str = "there is room for it now"
    _at_latest: bool = False
    _visits: int = 0

    def __post_init__(self) -> None:
        self.cluster = capacity.empty(self.nodes)
        self.fits_ever = fitting(self.cluster)
        self.total = capacity.total(machine.total for machine in self.cluster)
        self._active: set[str] = set()
        self._held: Counter[tuple[Worker, int]] = Counter()
        self._occupied: dict[frozenset[tuple[tuple[Worker, int], int]], Machines] = {}

    def take(self, active: Iterable[Job]) -> None:
        """Adds the jobs that run at the beginning."""
        for job in active:
            self._active.add(job.id)
            if job.stopping and job.state is not State.PREEMPTING:
                self._run(job, Length(seconds=SECONDS_TO_STOP))
                continue
            self._run(job, self.lengths.get(job.id))
            if job.state is State.PREEMPTING:  # it restarts with its minimum
                self._shrink(job)

    def run(self) -> dict[str, Estimate]:
        """Replays until every job has started, or nothing more is known."""
        while self.waiting:
            blocked = self._start()
            if not self.waiting:
                break
            if self._visits > _MOST_VISITS:
                self._give_up(f"more than {count(len(self.found), 'job')} ahead")
            elif not self._advance(blocked):
                self._give_up(self._unknown())
        return self.found

    # Starts

    def _start(self) -> Job | None:
        """Starts what starts now; returns the first job that has to wait for room."""
        while True:
            ready = [job for job in self.waiting if self.delays.get(job.id, 0.0) <= self.now]
            running = list(self.running.values())
            no_place = sweep_limits.held(ready, running, self.sweeps, fits_ever=self.fits_ever)
            ready = [job for job in ready if job.id not in no_place]
            allocation = allocate_least(ready, self._machines(), self.cluster)
            for job in ready:
                if workers := allocation.workers.get(job.id):
                    self._found(job)
                    self._run(replace(job, state=State.RUNNING, workers=workers), self.lengths.get(job.id))
            self.waiting = [job for job in self.waiting if job.id not in allocation.workers]
            # A job that has started makes room in its sweep for none, so only a shrinking job repeats this.
            if allocation.blocked is None or not self._make_room(allocation.blocked, ready):
                return allocation.blocked

    def _found(self, job: Job) -> None:
        at_latest = self._at_latest or (self.now > 0 and bool(self.loose))
        because = self._because
        if self.now > 0 and self.delays.get(job.id) == self.now:
            because = "when its wait after a failure ends"
        self.found[job.id] = Estimate(seconds=self.now, because=because, at_latest=at_latest)

    def _machines(self) -> Machines:
        """Returns the machines with what runs on them: in a steady state the same again and again."""
        self._visits += len(self.nodes)
        key = frozenset(self._held.items())
        if key not in self._occupied:
            self._visits += len(self.running)
            self._occupied[key] = capacity.occupied(self.nodes, self.running.values())
        return self._occupied[key]

    def _run(self, job: Job, length: Length | None) -> None:
        self.running[job.id] = job
        self._hold(job, 1)
        self.ends[job.id] = math.inf if length is None else self.now + length.seconds
        if length is None or length.at_most:
            self.loose.add(job.id)

    def _make_room(self, blocked: Job, ready: Sequence[Job]) -> bool:
        """Shrinks the jobs that the scheduler would preempt for this one; returns whether any is."""
        running = [*self.running.values()]
        if not any(job.elastic and (job.workers or 0) > Demand.of(job).least for job in running):
            return False
        queue = [job for job in ready if job.id not in self.running]
        left = {job_id: end - self.now for job_id, end in self.ends.items() if end < math.inf}
        shrinking = preemption.make_room(blocked, queue, running, self.nodes, left)
        for job in shrinking or []:
            self._shrink(job)
            self._because = "when other jobs have made room for it"
        return bool(shrinking)

    def _shrink(self, job: Job) -> None:
        least = Demand.of(job).least
        slower = (job.workers or least) / least
        self._hold(job, -1)
        self.running[job.id] = replace(job, workers=least, state=State.RUNNING)
        self._hold(self.running[job.id], 1)
        self.ends[job.id] = self.now + (self.ends[job.id] - self.now) * slower

    # Time

    def _advance(self, blocked: Job | None) -> bool:
        """Goes to the next moment at which a job may start; returns whether there is one."""
        while True:
            waits = [at for job in self.waiting if (at := self.delays.get(job.id, 0.0)) > self.now]
            then = min([*waits, *self.ends.values()], default=math.inf)
            if then == math.inf:
                return False
            self.now = then
            ended = [job_id for job_id, end in self.ends.items() if end <= then]
            may_matter = then in waits or any(self.running[each].sweep_id in self.sweeps for each in ended)
            for job_id in ended:
                self._end(job_id)
            # The head keeps those behind it waiting: as long as too little is free for it, nothing starts.
            if may_matter or blocked is None or self._may_fit(blocked):
                return True

    def _end(self, job_id: str) -> None:
        job = self.running.pop(job_id)
        self._hold(job, -1)
        del self.ends[job_id]
        self._at_latest |= job_id in self.loose
        self.loose.discard(job_id)
        if job_id in self._active:
            self._because = f"when job {job_id} {'stops' if job.stopping else 'ends'}"
        else:
            self._because = f"after {count(len(self.found), 'job')} ahead of it"

    def _may_fit(self, job: Job) -> bool:
        """Returns whether enough is free in total. Cheap, and never False for a job that fits."""
        demand = Demand.of(job)
        need = demand.each * demand.least
        free = self.total - capacity.total(
            worker.amount * (n * times) for (worker, n), times in self._held.items()
        )
        # Of what it does not need, nothing has to be free: too much may be held after a machine was lost.
        pairs = ((free.cpus, need.cpus), (free.gpus, need.gpus), (free.memory, need.memory))
        return all(has >= needs for has, needs in pairs if needs)

    def _hold(self, job: Job, change: int) -> None:
        demand = Demand.of(job)
        gang = demand.worker, demand.least if job.workers is None else job.workers
        self._held[gang] += change
        if not self._held[gang]:
            del self._held[gang]

    # The end

    def _give_up(self, because: str) -> None:
        paused = {sweep_id for sweep_id, limits in self.sweeps.items() if limits.paused}
        for job in self.waiting:
            text = f"sweep {job.sweep_id} is paused" if job.sweep_id in paused else because
            self.found[job.id] = Estimate(seconds=None, because=text)
        self.waiting = []

    def _unknown(self) -> str:
        for job_id in self.running:
            if job_id not in self.lengths:
                return f"the length of job {job_id} is not known"
        return "not known yet"
