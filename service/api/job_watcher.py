"""A shared cache of followed jobs: one database query serves every follower."""

from __future__ import annotations

import hashlib
import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from service.api import sse
from service.errors import Unavailable
from service.jobs.job import Job, utc_now
from service.queue.store import Store

_FOLLOWED_SECONDS = 10.0
"""Seconds without a request after which a job is no longer followed."""


@dataclass(frozen=True, kw_only=True)
class JobSnapshot:
    """A job as read from the database; after its deletion, as it was last, with `deleted_at`.

    document: the job as JSON. version: a digest of `document`. last_event: the id of the last one that was
    seen. begun: when the query began (monotonic).
    """

    job: Job
    document: str
    version: str
    last_event: int
    begun: float


class JobWatcher:
    """Reads all followed jobs in one query, at most once every `sse.POLL_S` seconds. Thread-safe.

    Only one caller at a time waits for the database; the others get the last snapshot. So followers occupy
    one thread and one connection when the database is slow.
    """

    def __init__(self, store: Store, document: Callable[[Job], str]) -> None:
        self._store, self._document = store, document
        self._snapshots: dict[str, JobSnapshot] = {}
        self._requested_at: dict[str, float] = {}
        self._refreshed_at = -math.inf
        self._problem: Unavailable | None = None
        self._refreshing, self._lock = threading.Lock(), threading.Lock()

    def snapshot(self, job_id: str) -> JobSnapshot:
        """Returns a snapshot of the job. Raises NotFound, and Unavailable if the last query failed.

        Blocks on the database for the first request of a job and when this caller refreshes the snapshots.
        """
        with self._lock:
            known = self._snapshots.get(job_id)
            if known is not None:
                self._requested_at[job_id] = time.monotonic()
        if known is None:
            known = self._read_first(job_id)
        if time.monotonic() - self._refreshed_at >= sse.POLL_S and self._refreshing.acquire(blocking=False):
            try:
                self._refresh()
            finally:
                self._refreshed_at = time.monotonic()
                self._refreshing.release()
        if self._problem:
            raise self._problem.with_traceback(None)
        return self._snapshots.get(job_id, known)

    def _read_first(self, job_id: str) -> JobSnapshot:
        begun = time.monotonic()
        job = self._store.get(job_id)
        snapshot = self._update(job, self._store.last_events([job_id]).get(job_id, 0), begun)
        with self._lock:
            self._requested_at[job_id] = begun
        return snapshot

    def _refresh(self) -> None:
        begun = time.monotonic()
        try:
            followed = self._followed(begun)
            jobs, last_events = self._store.several(followed), self._store.last_events(followed)
        except Unavailable as error:
            self._problem = error
            return
        self._problem = None
        for job in jobs:
            self._update(job, last_events.get(job.id, 0), begun)
        for job_id in set(followed) - {job.id for job in jobs}:
            self._note_deletion(job_id)

    def _note_deletion(self, job_id: str) -> None:
        with self._lock:
            known = self._snapshots.get(job_id)
            if known is not None and known.job.deleted_at is None:
                job = replace(known.job, deleted_at=utc_now())
                self._snapshots[job_id] = replace(known, job=job, version="deleted")

    def _followed(self, now: float) -> list[str]:
        with self._lock:
            gone = [job_id for job_id, asked in self._requested_at.items() if now - asked > _FOLLOWED_SECONDS]
            for job_id in gone:
                del self._requested_at[job_id]
                self._snapshots.pop(job_id, None)
            return list(self._requested_at)

    def _update(self, job: Job, last_event: int, begun: float) -> JobSnapshot:
        known = self._snapshots.get(job.id)
        made = known if known and known.job == job else self._take(job, begun)
        snapshot = replace(made, begun=begun, last_event=last_event)
        with self._lock:
            # Race closed: a query that began before another one and ended after it would restore an old job.
            if (latest := self._snapshots.get(job.id)) is None or latest.begun < begun:
                self._snapshots[job.id] = snapshot
        return snapshot

    def _take(self, job: Job, begun: float) -> JobSnapshot:
        document = self._document(job)
        version = hashlib.sha256(document.encode()).hexdigest()[:16]
        return JobSnapshot(job=job, document=document, version=version, last_event=0, begun=begun)
