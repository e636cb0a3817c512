"""What the topics of streams look like: another value means that a stream has something to send."""

from __future__ import annotations

import time
from collections.abc import Collection, Hashable, Mapping

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


def job_topic(job_id: str) -> Topic:
    """Returns the topic of a job's events."""
    return ("job", job_id)


def log_topic(job_id: str) -> Topic:
    """Returns the topic of a job's logs."""
    return ("log", job_id)


def points_topic(job_id: str) -> Topic:
    """Returns the topic of a job's events and points."""
    return ("points", job_id)


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
        return {topic: self._look(topic) for topic in topics}

    def _look(self, topic: Topic) -> Hashable:
        kind, job_id = topic
        try:
            if topic == ALL_EVENTS:
                return self._horizon.now()
            if topic == MOMENT:
                return self._horizon.now(), self._store.moment(), time.monotonic() // _MOMENT_S
            snapshot = self._job_watcher.snapshot(job_id)
            if kind == "log":
                job = snapshot.job
                return (job.state, job.attempt, job.workers, self._logs.sizes(job))
            seen = (snapshot.version, snapshot.last_event)
            return (*seen, self._points.end(job_id)) if kind == "points" else seen
        except (Unavailable, NotFound) as error:
            return str(error)
