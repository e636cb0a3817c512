"""What the topics of streams look like: another value means that a stream has something to send."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping
from functools import cached_property, partial
from typing import NamedTuple

from service.api.job_watcher import JobWatcher
from service.api.lately import Lately
from service.api.sse import Topic
from service.errors import NotFound, Unavailable
from service.job_logs import JobLogs
from service.job_points import JobPoints, SpoolLook
from service.jobs.job import Job
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


def points_topic(job_ids: Iterable[str]) -> Topic:
    """Returns the topic of these jobs and their points."""
    return ("points", ",".join(job_ids))


def horizon_of(horizon: EventHorizon, lately: Lately) -> int | None:
    """Returns `EventHorizon.now` as of a moment ago."""
    return lately.of("horizon of events", horizon.now)


def sizes_of(job: Job, logs: JobLogs, lately: Lately) -> tuple[tuple[int, int], ...]:
    """Returns `JobLogs.sizes` as of a moment ago."""
    return lately.of(("sizes of logs", job.id, job.attempt), lambda: logs.sizes(job))


def spool_of(job_id: str, points: JobPoints, lately: Lately) -> SpoolLook:
    """Returns `JobPoints.look` as of a moment ago."""
    return lately.of(("spool", job_id), lambda: points.look(job_id))


def jobs_topic(job_ids: Iterable[str], *, and_others: bool = False) -> Topic:
    """Returns the topic of these jobs. and_others: and of all events, and of time as in MOMENT."""
    return (_JOBS_AND_OTHERS if and_others else _JOBS, ",".join(job_ids))


class Looks:
    """Looks at followed jobs in one query, at the sizes of followed logs and spools, and at all events.

    A change of jobs without an event, as each step is, is told one look later, or together with another
    change. So who follows a job that reports its progress and its points once a second is told once a second.
    A log that grows is told at once, unless the look before has told of it: once a second, while it grows.
    """

    def __init__(
        self,
        store: Store,
        job_watcher: JobWatcher,
        logs: JobLogs,
        points: JobPoints,
        horizon: EventHorizon,
        lately: Lately,
    ) -> None:
        self._store, self._job_watcher, self._horizon = store, job_watcher, horizon
        self._logs, self._points, self._lately = logs, points, lately
        self._told: dict[Topic, _Seen] = {}
        self._held: set[Topic] = set()
        self._just_told: set[Topic] = set()

    def __call__(self, topics: Collection[Topic]) -> Mapping[Topic, Hashable]:
        """Blocks. A topic that cannot be looked at looks like its problem: its stream then finds it too."""
        look = _Look(self._store, self._job_watcher, partial(horizon_of, self._horizon, self._lately))
        before, self._told = self._told, {topic: self._look(topic, look) for topic in topics}
        held, self._held = self._held, set()
        for topic, now in self._told.items():
            known = before.get(topic)
            if known and known.at_once == now.at_once and self._may_wait(topic, known, now, held):
                self._told[topic] = known
                self._held.add(topic)
        self._just_told = {topic for topic, now in self._told.items() if now != before.get(topic)}
        return dict(self._told)

    def _may_wait(self, topic: Topic, known: _Seen, now: _Seen, held: Collection[Topic]) -> bool:
        """Returns whether what has changed is told one look later."""
        if topic in held:
            return False
        return known.soon != now.soon or (known.often != now.often and topic in self._just_told)

    def _look(self, topic: Topic, look: _Look) -> _Seen:
        kind, job_id = topic
        try:
            if topic == ALL_EVENTS:
                return _Seen(look.events)
            if topic == MOMENT:
                jobs = look.active
                return _Seen((look.events, look.machines, look.time, jobs.at_once), jobs.soon)
            if kind in {_JOBS, _JOBS_AND_OTHERS}:
                jobs = look.jobs(_ids(job_id))
                return jobs if kind == _JOBS else _Seen((look.events, look.time, jobs.at_once), jobs.soon)
            if kind == "points":
                jobs, ends = (
                    look.jobs(_ids(job_id)),
                    tuple(spool_of(each, self._points, self._lately) for each in _ids(job_id)),
                )
                is_one = len(ends) == 1  # the points of several come at several moments
                return _Seen((jobs.at_once, is_one and ends), (jobs.soon, ends))
            snapshot = self._job_watcher.snapshot(job_id)
            if kind == "log":
                job = snapshot.job
                sizes = sizes_of(job, self._logs, self._lately)
                return _Seen((job.state, job.attempt, job.workers), often=sizes)
            return _Seen(snapshot.last_event, snapshot.revision)
        except (Unavailable, NotFound) as error:
            return _Seen(str(error))


class _Seen(NamedTuple):
    """What a topic looks like: parts of it, by when a change of them is told.

    at_once: at once. soon: one look later. often: at once, but not in two looks that follow each other.
    """

    at_once: Hashable
    soon: Hashable = None
    often: Hashable = None


class _Look:
    """What several topics have in common, looked at once when the first asks."""

    def __init__(self, store: Store, job_watcher: JobWatcher, horizon: Callable[[], int | None]) -> None:
        self._store, self._job_watcher, self._horizon = store, job_watcher, horizon
        self.time = time.monotonic() // _MOMENT_S

    @cached_property
    def events(self) -> Hashable:
        return self._horizon()

    @cached_property
    def active(self) -> _Seen:
        # Of the snapshots that the pages show: a page must not be told of a change that they do not have yet.
        return self.jobs(self._store.active_ids())

    @cached_property
    def machines(self) -> str:
        return self._store.machines_text()

    def jobs(self, job_ids: Collection[str]) -> _Seen:
        snapshots = self._job_watcher.snapshots(job_ids)
        last_events = tuple(snapshot.last_event for snapshot in snapshots)
        return _Seen(last_events, tuple(snapshot.revision for snapshot in snapshots))


def _ids(text: str) -> list[str]:
    return text.split(",") if text else []
