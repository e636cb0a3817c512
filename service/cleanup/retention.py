"""Retention: what the policy gives up is listed, or removed, a page of jobs at a time."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from functools import partial

from service.cleanup.policy import Policy
from service.cleanup.remains import Remains
from service.errors import Conflict, NotFound, Unavailable
from service.jobs.job import Job, Removed, utc_now
from service.queue.retained import Place
from service.queue.store import Store
from service.settings import Settings

log = logging.getLogger(__name__)

JOBS_AT_ONCE = 20
"""How many jobs a page looks at."""
CODE_AT_ONCE = 1000

Position = tuple[Removed, Place | None]
"""Where a page begins: a part, and the job behind which it continues."""


@dataclass(frozen=True, kw_only=True)
class Item:
    """What goes of one job, or an archive of code. what: the name of a member of `Removed`."""

    what: str
    job: str | None = None
    name: str | None = None
    code: str | None = None
    bytes: int


@dataclass(frozen=True, kw_only=True)
class Report:
    """What goes, or what went. problems: why something else did not. next: None: this is the last page."""

    items: list[Item]
    problems: list[str]
    next: Position | None

    @property
    def bytes(self) -> int:
        return sum(item.bytes for item in self.items)


class Retention:
    """Applies the policy of the settings to the jobs of a queue. Every method raises Unavailable.

    now: the time by which ages are counted.
    """

    def __init__(self, settings: Settings, store: Store, now: Callable[[], datetime] = utc_now) -> None:
        self.policy = Policy.of(settings)
        self._settings, self._store, self._now = settings, store, now

    def plan(self, after: Position | None = None) -> Report:
        """Returns a page of what would go now; changes nothing. after: `next` of the page before."""
        return self._page(after, self._size, lambda _digest, _moment: True)

    def apply(self, after: Position | None = None) -> Report:
        """Removes a page of what goes now; returns what it was. Several processes may call it at once."""
        return self._page(after, self._remove, self._store.remove_code)

    def finish(self) -> None:
        """Removes the rest of what a killed process has begun to remove."""
        for job in self._store.being_removed():
            for part in job.removing:
                try:
                    self._remove(job, part)
                except (Conflict, Unavailable) as error:
                    log.warning("job %s: its %s are not removed yet: %s", job.id, _name(part), error)

    def _page(
        self,
        after: Position | None,
        act: Callable[[Job, Removed], int],
        act_on_code: Callable[[str, datetime], bool],
    ) -> Report:
        now, items, problems = self._now(), list[Item](), list[str]()
        limits = self.policy.limits(now)
        parts = [*limits, Removed.CODE]
        what, place = after or (parts[0], None)
        if what is Removed.CODE:
            return Report(items=self._code(now, act_on_code), problems=[], next=None)
        if what not in limits:  # the settings have changed between two pages
            return Report(items=[], problems=[], next=None)
        jobs = self._store.ended_before(limits[what], what, after=place, limit=JOBS_AT_ONCE)
        in_use = self._store.sources_in_use() if jobs else set()
        for job in jobs:
            if job.id in in_use:
                continue
            try:
                if size := act(job, what):
                    items.append(Item(what=_name(what), job=job.id, name=job.name, bytes=size))
            except (Conflict, NotFound, Unavailable) as error:
                problems.append(f"job {job.id}: {error}")
        return Report(items=items, problems=problems, next=_next(parts, what, jobs))

    def _code(self, now: datetime, act: Callable[[str, datetime], bool]) -> list[Item]:
        if (moment := self.policy.code_limit(now)) is None:
            return []
        found = self._store.old_code(moment, CODE_AT_ONCE)
        return [
            Item(what="code", code=each.digest, bytes=each.size) for each in found if act(each.digest, moment)
        ]

    def _size(self, job: Job, what: Removed) -> int:
        return sum(Remains(self._settings, job).sizes(what).values())

    def _remove(self, job: Job, what: Removed) -> int:
        both = what | Removed.OTHER_CHECKPOINTS if what is Removed.CHECKPOINTS else what
        if not self._store.begin_removing(job, both):
            return 0
        may = partial(self._store.is_removing, job, what)
        size = Remains(self._settings, job, may).remove(what)
        self._store.end_removing(job, both)
        return size


def _next(parts: list[Removed], what: Removed, jobs: list[Job]) -> Position | None:
    if len(jobs) == JOBS_AT_ONCE and (ended := jobs[-1].finished_at) is not None:
        return what, Place(ended, jobs[-1].id)
    return parts[parts.index(what) + 1], None


def _name(part: Removed) -> str:
    return str(part.name).lower()
