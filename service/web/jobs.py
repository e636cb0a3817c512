"""The list of jobs: filters, orders and pages by URL; the rows that are shown are live."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from functools import partial
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Query, Request, Response

from service.api.access import caller_or_none
from service.api.context import Context, Services
from service.api.job_watcher import JobSnapshot
from service.api.looks import horizon_of, jobs_topic
from service.errors import Refused
from service.jobs.job import Job, State, is_id
from service.queue import patterns
from service.queue.job_lists import JobsPage, Order
from service.web import job_query, live
from service.web.job_query import JobQuery
from service.web.page import PageRoute, fragment, link_from, render

router = APIRouter(route_class=PageRoute, include_in_schema=False)
_ON_PAGE = 50
_COUNTED = 1_000
_NEWER = 100
Cursor = Annotated[str | None, Query(max_length=1_500)]


@router.get("/jobs")
def list_jobs(request: Request, services: Services, after: Cursor = None, before: Cursor = None) -> Response:
    """Lists jobs, newest first if no other order is asked for."""
    query = job_query.read(request.query_params)
    page, problems = JobsPage(items=[], before=None, after=None), dict(query.problems)
    if not problems:
        try:
            page = services.store.jobs_page(
                query.order, after=after, before=before, limit=_ON_PAGE, **query.filters
            )
        except Refused:
            problems["page"] = "This is no page of this list."
    values = {
        "query": query,
        "problems": problems,
        "states": list(State),
        "page": page,
        "jobs": page.items,
        "part_of_name": bool(query.texts["name"]) and not patterns.is_pattern(query.texts["name"]),
        "count": _count(services, query) if not problems else "",
        "live_query": _live_query(query, page.items, is_first=not (after or before)) if not problems else "",
    }
    return render(request, "jobs.html", 422 if problems else 200, **values)


@router.get("/live/jobs")
def live_jobs(
    request: Request, services: Services, shown: Annotated[str, Query(max_length=3_000)] = ""
) -> Response:
    """Keeps the rows of these jobs up to date, and says how many newer jobs match.

    The list itself stays as it is while somebody reads it or selects jobs of it. shown: the ids of the jobs;
    `first` in the query: the list is the first page of the newest jobs.
    """
    query = job_query.read(request.query_params)
    ids = [each for each in shown.split(",") if is_id(each)]
    is_first = "first" in request.query_params
    view = ("jobs", request.url.query if is_first else "", caller_or_none(request))
    parts = _Parts(request, services, ids, query if is_first else None)
    return live.stream(request, view, parts, jobs_topic(ids, and_others=is_first))


class _Parts:
    """The rows of these jobs, each made once for all lists that show it; and how many newer jobs match.

    query: of the list if it is the first page of the newest jobs. Counts again after other events only.
    """

    def __init__(
        self, request: Request, services: Context, ids: Sequence[str], query: JobQuery | None
    ) -> None:
        self._services, self._ids, self._query = services, ids, query
        self._part = partial(fragment, request, "jobs_live.html", url=partial(link_from, "/jobs"))
        self._counted: Hashable = None
        self._newer = b""

    def __call__(self) -> list[bytes]:
        found = {each.job.id: each for each in self._services.job_watcher.snapshots(self._ids)}
        rows = [self._row(found[each]) if each in found else self._gone(each) for each in self._ids]
        return [*rows, self._of_newer(self._query)] if self._query else rows

    def _row(self, snapshot: JobSnapshot) -> bytes:
        job = snapshot.job
        return snapshot.once("row of a list", lambda: self._part(job_id=job.id, job=job))

    def _gone(self, job_id: str) -> bytes:
        return self._part(job_id=job_id, job=None)

    def _of_newer(self, query: JobQuery) -> bytes:
        now = horizon_of(self._services.event_horizon, self._services.lately)
        if now is None or now != self._counted:
            newer = _newer(self._services, query, self._ids)
            self._newer = self._part(job_id="", newer=newer, first_page=urlencode(_pairs(query)))
            self._counted = now
        return self._newer


def _newer(services: Context, query: JobQuery, ids: Sequence[str]) -> str:
    """Returns how many jobs match that are newer than those; "" for none."""
    found = services.store.count_jobs(limit=_NEWER, newer_than=ids[0] if ids else None, **query.filters)
    return f"{found}+" if found == _NEWER else str(found or "")


def _count(services: Context, query: JobQuery) -> str:
    """Returns how many jobs match; many only where the database need not look at each of them."""
    found = services.store.count_jobs(limit=_COUNTED + 1, **query.filters)
    if found <= _COUNTED:
        return f"{found:,}"
    if query.is_by_state_alone:
        counts = services.store.count_states()
        return f"{sum(counts[state] for state in query.states or State):,}"
    return f"{_COUNTED:,}+"


def _live_query(query: JobQuery, jobs: Sequence[Job], *, is_first: bool) -> str:
    pairs: list[tuple[str, Any]] = [("shown", ",".join(job.id for job in jobs))]
    if is_first and query.order is Order.NEWEST:
        pairs += [("first", 1), *_pairs(query)]
    return urlencode(pairs)


def _pairs(query: JobQuery) -> list[tuple[str, str]]:
    pairs = [("state", str(state)) for state in query.states] + [("label", text) for text in query.labels]
    return pairs + [(name, text) for name, text in query.texts.items() if text]
