"""The queued jobs as the scheduler needs them, remembered from one look at the database to the next.

With thousands of jobs that wait, a look reads only the columns that may change and compares them with those
of the last look. Only jobs whose row has changed are read and parsed as a whole.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from service.jobs.job import Job, State
from service.queue import storable
from service.queue.queue_rows import COLUMNS
from service.queue.store import Store

AT_ONCE = 500
"""Maximum number of jobs in one query."""
SCHEDULED = ("norm", "resources", "retries", "time_limit", "tracking")
"""The keys of a spec that are kept. The whole spec of each of 10,000 jobs would take 100 MB."""
LENGTH = ("max_epochs", "max_steps")
"""The keys of its `training` that are kept, too."""

MOST_SPECS = 10_000
"""Maximum number of different specs to remember."""

_REASON = COLUMNS.index("reason")


@dataclass(frozen=True, eq=False, kw_only=True)
class Queue:
    """The queued jobs in scheduling order. It is another object as soon as one of them has changed.

    Their specs have only what `scheduled` returns.
    """

    jobs: Sequence[Job] = ()

    @cached_property
    def by_id(self) -> Mapping[str, Job]:
        return {job.id: job for job in self.jobs}

    @cached_property
    def without_run(self) -> Sequence[Job]:
        """The jobs without an open run in the tracking server."""
        return [job for job in self.jobs if needs_run(job)]

    @cached_property
    def backing_off(self) -> Sequence[Job]:
        """The jobs that wait, or have waited, after a failure."""
        return [job for job in self.jobs if job.backoff_seconds]

    @cached_property
    def from_scratch(self) -> Sequence[Job]:
        """The jobs whose checkpoints have to be removed before they start."""
        return [job for job in self.jobs if job.from_scratch]

    @cached_property
    def limited(self) -> Sequence[Job]:
        """The jobs that are cancelled if they wait for too long."""
        return [job for job in self.jobs if job.time_limit.queue is not None and not job.attempt]

    @cached_property
    def of_sweeps(self) -> Sequence[Job]:
        return [job for job in self.jobs if job.sweep_id is not None]


def needs_run(job: Job) -> bool:
    """Returns whether the job has no run yet, or one that has to be reopened because it was retried."""
    return job.run is None or job.archived_at is not None


@dataclass(kw_only=True)
class WaitingJobs:
    """Reads the queue. Used by one thread.

    latest: as of the last look.
    """

    store: Store
    latest: Queue = field(default_factory=Queue)
    _rows: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    _specs: dict[str, Job] = field(default_factory=dict)

    def look(self) -> Queue:
        """Returns the queue as it is now. Raises Unavailable."""
        rows = {row[0]: row for row in self.store.queue_rows()}
        if rows != self._rows or [*rows] != [*self._rows]:
            known, before = self.latest.by_id, self._rows
            same = {job_id for job_id, row in rows.items() if before.get(job_id) == row and job_id in known}
            read = self._read([job_id for job_id in rows if job_id not in same])
            found = (known[job_id] if job_id in same else read.get(job_id) for job_id in rows)
            # Race closed: a job that was started or cancelled between the two queries is not queued any more.
            jobs = [job for job in found if job is not None and job.state is State.QUEUED]
            self.latest, self._rows = Queue(jobs=jobs), rows
        return self.latest

    def _read(self, job_ids: Sequence[str]) -> dict[str, Job]:
        begins = range(0, len(job_ids), AT_ONCE)
        chunks = (self.store.several(job_ids[begin : begin + AT_ONCE]) for begin in begins)
        return {job.id: self._slim(job) for chunk in chunks for job in chunk}

    def noted(self, reasons: Iterable[tuple[Job, str]]) -> None:
        """Remembers the reasons that were just written to these jobs' rows.

        One that was not, because the job has moved on, differs from the row at the next look.
        """
        new = {job.id: storable.reason(why) for job, why in reasons}
        new = {job_id: why for job_id, why in new.items() if self.latest.by_id[job_id].reason != why}
        if new:
            for job_id, why in new.items():
                row = self._rows[job_id]
                self._rows[job_id] = (*row[:_REASON], why, *row[_REASON + 1 :])
            jobs = [
                _parsed_as(job, replace(job, reason=new[job.id])) if job.id in new else job
                for job in self.latest.jobs
            ]
            self.latest = Queue(jobs=jobs)

    def _slim(self, job: Job) -> Job:
        """Returns the job with what scheduling needs of its spec, shared by all jobs that need the same."""
        spec = scheduled(job.spec)
        if len(self._specs) >= MOST_SPECS:
            self._specs.clear()
        like = self._specs.setdefault(json.dumps(spec), replace(job, spec=spec))
        return _parsed_as(like, replace(job, spec=like.spec, labels={}, error=None))


def scheduled(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what is kept of a spec: the keys `SCHEDULED`, and how long the training is."""
    training = spec.get("training") or {}
    kept = {key: spec[key] for key in SCHEDULED if key in spec}
    return {**kept, "training": {key: training[key] for key in LENGTH if key in training}}


def _parsed_as(like: Job, job: Job) -> Job:
    """Gives a job what was parsed of the same spec: parsing it takes longer than all the rest."""
    vars(job).update(resources=like.resources, time_limit=like.time_limit)  # its cached properties
    return job
