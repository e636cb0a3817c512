"""How long jobs still wait after a failure, whatever becomes of the wall clock meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import datetime
from time import monotonic

from service.jobs.job import Job, utc_now


class Backoffs:
    """The waits of queued jobs, each measured by this process's monotonic clock from when it first saw it.

    The wall clock is read only then, because another scheduler may have begun the wait: what is left of it
    is at least nothing and at most the whole. So a step of the clock during a scheduler's life changes no
    wait, and one that a change of schedulers meets cannot make a wait longer than it began.
    """

    def __init__(self, clock: Callable[[], float] = monotonic, now: Callable[[], datetime] = utc_now) -> None:
        self._clock, self._now = clock, now
        self._ends: dict[tuple[str, int, datetime], float] = {}

    def waiting(self, queue: Iterable[Job]) -> dict[str, float]:
        """Returns the seconds that jobs still wait, by id, of those that do. queue: all queued jobs."""
        keys = {_key(job): job for job in queue if job.backoff_seconds and job.not_before is not None}
        now = self._clock()
        self._ends = {
            key: self._ends[key] if key in self._ends else now + self._left(job) for key, job in keys.items()
        }
        return {key[0]: end - now for key, end in self._ends.items() if end > now}

    def _left(self, job: Job) -> float:
        assert job.not_before is not None
        return min(max((job.not_before - self._now()).total_seconds(), 0.0), job.backoff_seconds)


def _key(job: Job) -> tuple[str, int, datetime]:
    assert job.not_before is not None
    return job.id, job.attempt, job.not_before
