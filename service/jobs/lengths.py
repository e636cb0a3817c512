"""How long jobs take: by their measured speed, by jobs like them that ended, by time limits. Pure."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from statistics import median
from typing import Any, Self

from service.jobs.job import Job, State

LIKE_IT = 5
"""Of how many of the last jobs of the same sweep or name the median is taken."""


@dataclass(frozen=True, kw_only=True)
class Length:
    """How long a job holds its workers from now or from its start on. at_most: only a limit is known."""

    seconds: float
    at_most: bool = False


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How much a job trains, as its spec says it: optimizer steps or epochs."""

    unit: str
    number: int

    @classmethod
    def of(cls, training: Mapping[str, Any] | None) -> Self | None:
        """Returns the plan of a spec's `training`; None if it does not limit steps or epochs."""
        for unit in ("max_steps", "max_epochs"):
            number = (training or {}).get(unit)
            if number is not None and number > 0:
                return cls(unit=unit, number=number)
        return None


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A job whose length is known. seconds: how long all its starts run, together."""

    job_id: str
    name: str
    sweep_id: str | None
    seconds: float
    plan: Plan | None

    @property
    def kinds(self) -> Iterator[Hashable]:
        """What jobs like it have in common, the nearest first."""
        return _kinds(self.sweep_id, self.name)


@dataclass(frozen=True, kw_only=True)
class Succeeded(Measured):
    """A job that has succeeded."""

    finished_at: datetime


class History:
    """The lengths of jobs by sweep and name: of those that succeeded lately, until then of those that run."""

    def __init__(self, ended: Iterable[Succeeded] = ()) -> None:
        self._like: dict[Hashable, deque[Succeeded]] = defaultdict(lambda: deque(maxlen=LIKE_IT))
        self._running: dict[Hashable, list[Measured]] = {}
        self.latest: datetime | None = None
        self._latest_ids: set[str] = set()
        self.add(ended)

    def add(self, ended: Iterable[Succeeded]) -> None:
        """Adds jobs, in any order. Those that ended before the latest that is known are known already."""
        for job in sorted(ended, key=lambda job: (job.finished_at, job.job_id)):
            if self.latest is None or job.finished_at > self.latest:
                self.latest, self._latest_ids = job.finished_at, set()
            elif job.finished_at < self.latest or job.job_id in self._latest_ids:
                continue
            self._latest_ids.add(job.job_id)
            for kind in job.kinds:
                self._like[kind].append(job)

    def set_running(self, active: Iterable[tuple[Job, float]]) -> None:
        """Replaces the jobs that run, each with the seconds that it has run. Those without an estimate of
        their end say nothing.
        """
        self._running = defaultdict(list)
        for job, ran in active:
            if (eta := _eta(job)) is not None:
                plan = Plan.of(job.spec.get("training"))
                measured = Measured(
                    job_id=job.id, name=job.name, sweep_id=job.sweep_id, seconds=ran + eta, plan=plan
                )
                for kind in measured.kinds:
                    self._running[kind].append(measured)

    def of(self, job: Job) -> float | None:
        """Returns the median length of jobs of its sweep, or else of its name; None: there are none.

        Lengths are scaled by the steps or epochs of the job where theirs are planned in the same unit.
        """
        for kind in _kinds(job.sweep_id, job.name):
            if like := self._like.get(kind) or self._running.get(kind):
                return _median(Plan.of(job.spec.get("training")), like)
        return None


def _kinds(sweep_id: str | None, name: str) -> Iterator[Hashable]:
    if sweep_id is not None:
        yield "sweep", sweep_id
    yield "name", name


def _median(plan: Plan | None, like: Iterable[Measured]) -> float:
    like = list(like)
    alike = [each for each in like if plan and each.plan and each.plan.unit == plan.unit]
    if plan is None or not alike:
        return median(each.seconds for each in like)
    return median(each.seconds * plan.number / each.plan.number for each in alike if each.plan)


def of_active(job: Job, ran: float, history: History) -> Length | None:
    """Returns how long an active job still holds its workers; None: nothing is known.

    ran: the seconds that all its starts ran so far. One that has taken longer than jobs like it may take any
    time.
    """
    eta = _eta(job)
    return _limited(job, ran, _rest(history.of(job), ran) if eta is None else eta)


def of_queued(job: Job, history: History) -> Length | None:
    """Returns how long a queued job will hold its workers; None: nothing is known."""
    begun = _eta(job) if job.attempt else None
    return _limited(job, job.ran_seconds, begun if begun is not None else _rest(history.of(job), 0.0))


def ran_so_far(job: Job, now: datetime) -> float:
    """Returns the seconds that all starts of the job ran, as far as its row says."""
    if job.state is State.QUEUED or job.started_at is None or job.ran_seconds or job.attempt > 1:
        return job.ran_seconds
    return max((now - job.started_at).total_seconds(), 0.0)


def _eta(job: Job) -> float | None:
    return None if job.progress is None else job.progress.eta_seconds


def _rest(length: float | None, ran: float) -> float | None:
    return length - ran if length is not None and length > ran else None


def _limited(job: Job, ran: float, seconds: float | None) -> Length | None:
    limit = job.time_limit.run
    left = None if limit is None else max(limit - ran, 0.0)
    if seconds is not None:
        return Length(seconds=seconds if left is None else min(seconds, left))
    return None if left is None else Length(seconds=left, at_most=True)
