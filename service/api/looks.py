"""What the topics of streams look like: another value means that a stream has something to send."""

from __future__ import annotations

import time
from collections.abc import Collection, Hashable, Iterable, Mapping
from functools import cached_property

from service.api.job_watcher import JobWatcher
from service.api.sse import Topic
from service.errors import NotFound, Unavailable
from service.job_logs import JobLogs
from service.job_points import JobPoints
from service.queue.store import Store
from service.queue.stored_events import EventHorizon

ALL_EVENTS: Topic = ("events", "")
MOMENT: Topic = ("moment", "")
"""Everything that a page shows of this moment: the jobs with their progress, and the machines."""
_MOMENT_S = 5.0  # also what does not happen is to be seen: a scheduler that is silent
_JOBS, _JOBS_AND_OTHERS = "jobs", "jobs and others"


def job_topic(job_id: str) -> Topic:
    """Returns the topic of a job's events."""
    return ("job", job_id)


def log_topic(job_id: str) -> Topic:
    """Returns the topic of a job's logs."""
    return ("log", job_id)


def points_topic(job_id: str) -> Topic:
    """Returns the topic of a job's events and points."""
    return ("points", job_id)


def jobs_topic(job_ids: Iterable[str], *, and_others: bool = False) -> Topic:
    """Returns the topic of these jobs. and_others: and of all events, and of time as in MOMENT."""
    return (_JOBS_AND_OTHERS if and_others else _JOBS, ",".join(job_ids))


class Looks:
    """Looks at followed jobs in one query, at the sizes of followed logs and spools, and at all events."""

    def __init__(
        self,
        store: Store,
        job_watcher: JobWatcher,
        logs: JobLogs,
        points: JobPoints,
        horizon: EventHorizon,
    ) -> None:
        self._store, self._job_watcher, self._horizon = store, job_watcher, horizon
        self._logs, self._points = logs, points

    def __call__(self, topics: Collection[Topic]) -> Mapping[Topic, Hashable]:
        """Blocks. A topic that cannot be looked at looks like its problem: its stream then finds it too."""
        look = _Look(self._store, self._job_watcher, self._horizon)
        return {topic: self._look(topic, look) for topic in topics}

    def _look(self, topic: Topic, look: _Look) -> Hashable:
        kind, job_id = topic
        try:
            if topic == ALL_EVENTS:
                return look.events
            if topic == MOMENT:
                return look.events, look.moment, look.time
            if kind in {_JOBS, _JOBS_AND_OTHERS}:
                seen = look.jobs(job_id.split(",") if job_id else [])
                return seen if kind == _JOBS else (seen, look.events, look.time)
            snapshot = self._job_watcher.snapshot(job_id)
            if kind == "log":
                job = snapshot.job
                return (job.state, job.attempt, job.workers, self._logs.sizes(job))
            seen = (snapshot.revision, snapshot.last_event)
            return (*seen, self._points.end(job_id)) if kind == "points" else seen
        except (Unavailable, NotFound) as error:
            return str(error)


class _Look:
    """What several topics have in common, looked at once when the first asks."""

    def __init__(self, store: Store, job_watcher: JobWatcher, horizon: EventHorizon) -> None:
        self._store, self._job_watcher, self._horizon = store, job_watcher, horizon
        self.time = time.monotonic() // _MOMENT_S

    @cached_property
    def events(self) -> Hashable:
        return self._horizon.now()

    @cached_property
    def moment(self) -> Hashable:
        # Of the snapshots that the pages show: a page must not be told of a change that they do not have yet.
        return self.jobs(self._store.active_ids()), self._store.machines_text()

    def jobs(self, job_ids: Collection[str]) -> Hashable:
        snapshots = self._job_watcher.snapshots(job_ids)
        return tuple((snapshot.revision, snapshot.last_event) for snapshot in snapshots)
