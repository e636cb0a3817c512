"""A shared cache of followed jobs: one database query serves every follower."""

from __future__ import annotations

import hashlib
import itertools
import math
import threading
import time
from collections.abc import Callable, Collection, Hashable
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from service.api import sse
from service.errors import Unavailable
from service.jobs.job import Job, utc_now
from service.queue.queue_rows import JobLook
from service.queue.store import Store

_FOLLOWED_SECONDS = 10.0
"""Seconds without a request after which a job is no longer followed."""
Made = TypeVar("Made")


@dataclass(frozen=True, kw_only=True)
class JobSnapshot:
    """A job as read from the database; after its deletion, as it was last, with `deleted_at`.

    revision: another number whenever the job is another one; of this process. last_event: the id of the last
    one that was seen. begun: when the query began (monotonic).
    """

    job: Job
    revision: int
    last_event: int
    begun: float
    _write: Callable[[Job], str] = field(repr=False)
    _made: dict[Hashable, Any] = field(default_factory=dict, repr=False, compare=False)

    def once(self, key: Hashable, make: Callable[[], Made]) -> Made:
        """Returns what `make` has made of this job, at the first call with this key; then the same again.

        It has to be a function of the job, its last event and the key.
        """
        key = (self.last_event, key)
        if key not in self._made:
            self._made[key] = make()  # in two threads at once it is made twice
        made: Made = self._made[key]
        return made

    @property
    def document(self) -> str:
        """The job as JSON."""
        return self.once("document", lambda: self._write(self.job))

    @property
    def version(self) -> str:
        """A digest of `document`."""
        return self.once("version", lambda: hashlib.sha256(self.document.encode()).hexdigest()[:16])


class JobWatcher:
    """Reads all followed jobs in one query, at most once every `sse.POLL_S` seconds. Thread-safe.

    Only one caller at a time waits for the database; the others get the last snapshot. So followers occupy
    one thread and one connection when the database is slow.
    """

    def __init__(self, store: Store, document: Callable[[Job], str]) -> None:
        self._store, self._document = store, document
        self._snapshots: dict[str, JobSnapshot] = {}
        self._looks: dict[str, JobLook] = {}  # what the rows of the snapshots looked like
        self._deleted: set[str] = set()
        self._requested_at: dict[str, float] = {}
        self._refreshed_at = -math.inf
        self._problem: Unavailable | None = None
        self._refreshing, self._lock = threading.Lock(), threading.Lock()
        self._revisions = itertools.count(1)

    def snapshot(self, job_id: str) -> JobSnapshot:
        """Returns a snapshot of the job. Raises NotFound, and Unavailable if the last query failed.

        Blocks on the database for the first request of a job and when this caller refreshes the snapshots.
        """
        known = self._known([job_id])
        if not known:
            begun = time.monotonic()
            job = self._store.get(job_id)
            known = self._update([job], self._store.last_events([job_id]), begun)
        self._look_again()
        return self._snapshots.get(job_id, known[job_id])

    def snapshots(self, job_ids: Collection[str]) -> list[JobSnapshot]:
        """Returns snapshots of those of the jobs that exist, in this order.

        Raises Unavailable, and blocks, as `snapshot` does.
        """
        known = self._known(job_ids)
        if missing := [job_id for job_id in job_ids if job_id not in known]:
            begun = time.monotonic()
            found = self._store.several(missing)
            known |= self._update(found, self._store.last_events(missing), begun)
        self._look_again()
        with self._lock:
            return [
                self._snapshots.get(job_id, known[job_id])
                for job_id in job_ids
                if job_id in known and job_id not in self._deleted
            ]

    def _known(self, job_ids: Collection[str]) -> dict[str, JobSnapshot]:
        with self._lock:
            found = {job_id: self._snapshots[job_id] for job_id in job_ids if job_id in self._snapshots}
            self._requested_at.update(dict.fromkeys(found, time.monotonic()))
            return found

    def _look_again(self) -> None:
        if time.monotonic() - self._refreshed_at >= sse.POLL_S and self._refreshing.acquire(blocking=False):
            try:
                self._refresh()
            finally:
                self._refreshed_at = time.monotonic()
                self._refreshing.release()
        if self._problem:
            raise self._problem.with_traceback(None)

    def _refresh(self) -> None:
        begun = time.monotonic()
        try:
            followed = self._followed(begun)
            # In this order: who sees an event also sees what it has changed.
            last_events, looks = self._store.last_events(followed), self._store.looks_at(followed)
            jobs = self._changed(looks)
        except Unavailable as error:
            self._problem, self._looks = error, {}
            return
        self._problem = None
        self._update(jobs, last_events, begun)
        with self._lock:
            # A look is older than the job that was read after it: if they differ, the next look finds it.
            self._looks = looks
            self._deleted = set(followed) - looks.keys()
            for job_id in self._deleted & self._snapshots.keys():
                self._note_deletion(job_id)

    def _note_deletion(self, job_id: str) -> None:
        known = self._snapshots[job_id]
        if known.job.deleted_at is None:
            job = replace(known.job, deleted_at=utc_now())
            self._snapshots[job_id] = replace(known, job=job, revision=next(self._revisions), _made={})

    def _changed(self, looks: dict[str, JobLook]) -> list[Job]:
        """Returns the jobs as they are now; reads what others look like than before."""
        with self._lock:
            known = {job_id: self._snapshots[job_id].job for job_id in looks if job_id in self._snapshots}
            seen = self._looks
        changed, moved_on = [], []
        for job_id, look in looks.items():
            before = seen.get(job_id)
            if job_id not in known or before is None or before.rest != look.rest:
                changed.append(job_id)
            elif before.progress != look.progress:
                moved_on.append(job_id)
        known |= {job.id: job for job in self._store.several(changed)}
        for job_id, progress in self._store.progress_of(moved_on).items():
            known[job_id] = replace(known[job_id], progress=progress)
        return list(known.values())

    def _followed(self, now: float) -> list[str]:
        with self._lock:
            gone = [job_id for job_id, asked in self._requested_at.items() if now - asked > _FOLLOWED_SECONDS]
            for job_id in gone:
                del self._requested_at[job_id]
                self._snapshots.pop(job_id, None)
            return list(self._requested_at)

    def _update(
        self, jobs: Collection[Job], last_events: dict[str, int], begun: float
    ) -> dict[str, JobSnapshot]:
        """Keeps the jobs that a query found. Returns their snapshots."""
        found = {}
        for job in jobs:
            known, last_event = self._snapshots.get(job.id), last_events.get(job.id, 0)
            if known is None or (known.job is not job and known.job != job):
                revision = next(self._revisions)
                made = JobSnapshot(
                    job=job, revision=revision, last_event=last_event, begun=begun, _write=self._document
                )
            else:
                made = replace(known, begun=begun, last_event=last_event)
            found[job.id] = made
        with self._lock:
            for job_id, snapshot in found.items():
                self._requested_at.setdefault(job_id, begun)
                # Race closed: a query that began before another one and ended after it would restore an old
                # job.
                if (latest := self._snapshots.get(job_id)) is None or latest.begun < begun:
                    self._snapshots[job_id] = snapshot
        return found
