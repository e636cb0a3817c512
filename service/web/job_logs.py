"""The tab `logs` of a job: what a rank has printed, from the end back, live, with a search."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.sse import format_sse_event

from service.api.context import Context, Services
from service.api.looks import log_topic, sizes_of
from service.errors import NotFound, Refused, Unavailable
from service.job_logs import JobLogs, Log, LogFile, View
from service.jobs.job import Job, Removed
from service.web import log_pages
from service.web.log_pages import Found, LogPage
from service.web.page import number_in_query
from training.protocol import log_file
from training.spec import Problem

router = APIRouter(include_in_schema=False)
_SHOWN_ATTEMPTS = 200
_MOST_IN_STREAM = 1 << 14  # bytes; what is more is fetched

Attempt = Annotated[int, Query(ge=1)]
Rank = Annotated[int | None, Query(ge=0)]
Offset = Annotated[int | None, Query(ge=0, le=2**60)]


@dataclass(frozen=True, kw_only=True)
class LogView:
    """What the tab shows first.

    attempt, rank: of the log; rank: None for a log of all ranks. is_latest: nobody has asked for an attempt.
    ranks: those that have a log in this attempt, and their sizes. page: the end of the log; None: there is
    none, and `problem` says why. begun: whether the job has an attempt. all_ranks: those of all ranks are
    wanted in one view, with so many last lines of each (`tail`) of what was printed before.
    """

    attempts: list[int]
    attempt: int
    rank: int | None
    is_latest: bool
    ranks: list[tuple[int | None, int]]
    page: LogPage | None
    problem: str
    begun: bool
    all_ranks: bool = False
    tail: int = 200


def values(request: Request, services: Context, job: Job) -> Mapping[str, Any]:
    """Returns what the tab shows. Raises NotFound for an attempt that there is not."""
    asked, rank = number_in_query(request, "attempt"), number_in_query(request, "rank")
    if asked is not None and not 1 <= asked <= max(job.attempt, 1):
        raise NotFound(f"job {job.id!r} has no attempt {asked}; its latest attempt is {job.attempt}")
    try:
        view = _view(_logs(services), job, asked, rank)
        wants_all = request.query_params.get("rank") == "all" and len(view.ranks) > 1
        return {"log": replace(view, all_ranks=wants_all)}
    except Unavailable as error:
        return {"log": _unreadable(job, asked, rank, error)}


def _view(logs: JobLogs, job: Job, asked: int | None, rank: int | None) -> LogView:
    is_removed = Removed.LOGS in job.removed
    attempt = asked or (None if is_removed else logs.latest(job, View())) or max(job.attempt, 1)
    found = [] if is_removed or not job.attempt else logs.of(job, attempt)
    chosen = next((log for log in found if rank in {None, log.rank}), None)
    return LogView(
        attempts=_attempts(job),
        attempt=attempt,
        rank=chosen.rank if chosen else rank,
        is_latest=asked is None,
        ranks=[(log.rank, log.size()) for log in found],
        page=log_pages.page_before(chosen, chosen.size()) if chosen else None,
        problem="" if chosen else _why_none(job, attempt, rank, has_others=bool(found)),
        begun=job.attempt > 0,
    )


def _unreadable(job: Job, asked: int | None, rank: int | None, error: Unavailable) -> LogView:
    return LogView(
        attempts=_attempts(job),
        attempt=asked or max(job.attempt, 1),
        rank=rank,
        is_latest=asked is None,
        ranks=[],
        page=None,
        problem=f"The logs cannot be read now: {error}. This page shows them once they can be.",
        begun=job.attempt > 0,
    )


def _attempts(job: Job) -> list[int]:
    return list(range(max(job.attempt, 1), 0, -1))[:_SHOWN_ATTEMPTS]


def _why_none(job: Job, attempt: int, rank: int | None, *, has_others: bool) -> str:
    if Removed.LOGS in job.removed:
        return "Retention has removed the logs. The run in MLflow has a copy among its artifacts (logs/)."
    if not job.attempt:
        why = f": {job.reason}" if job.reason else ""
        return f"The job has not started yet, so it has printed nothing{why}."
    if has_others:
        return f"Rank {rank} has no log in attempt {attempt}. Choose another rank."
    return f"Nothing has been printed in attempt {attempt}."


@router.get("/data/jobs/{job_id}/log")
def log_page(
    services: Services,
    job_id: str,
    attempt: Attempt,
    rank: Rank = None,
    after: Offset = None,
    before: Offset = None,
    at: Offset = None,
) -> LogPage:
    """Returns the lines after or before an offset, or from the line on to which a byte belongs."""
    log = _log(services, job_id, attempt, rank)
    if after is not None:
        return log_pages.page_after(log, after)
    if before is not None:
        return log_pages.page_before(log, before)
    if at is not None:
        return log_pages.page_at(log, at)
    raise Refused("give after, before or at", [Problem(key="after", message="is required")])


@router.get("/data/jobs/{job_id}/log/search")
def search_log(
    services: Services,
    job_id: str,
    attempt: Attempt,
    text: Annotated[str, Query(min_length=1, max_length=1000)],
    rank: Rank = None,
    regex: bool = False,
    after: Offset = None,
    before: Offset = None,
) -> Found:
    """Searches a portion for the first line after an offset, or the last one before it."""
    find = log_pages.matcher(text, regex=regex)
    log = _log(services, job_id, attempt, rank)
    if before is not None:
        return log_pages.search_before(log, before, find)
    return log_pages.search_after(log, after or 0, find)


@router.get("/live/jobs/{job_id}/log")
def live_log(services: Services, job_id: str, rank: Rank = None) -> Response:
    """Says whenever a log of the latest attempt has grown, and when the job has ended.

    Brings the lines by which that of `rank` has grown, unless they are too many: the page then fetches them.
    """
    services.job_watcher.snapshot(job_id)  # raises NotFound before the stream begins
    beginning: _Seen = ("", 0, None)
    return services.streams.response(log_topic(job_id), rank, _News(services, job_id, rank), beginning)


_Seen = tuple[str, int, int | None]
"""What has been said; the attempt of which lines are brought, and from where on, None before the first."""


class _News:
    """What has changed of a job's logs, as the event `log`. lines: a `LogPage`, or null."""

    def __init__(self, services: Context, job_id: str, rank: int | None) -> None:
        self._services, self._job_id, self._rank = services, job_id, rank
        self._sizes = partial(sizes_of, logs=_logs(services), lately=services.lately)

    def __call__(self, seen: _Seen) -> tuple[bytes, _Seen, bool]:
        # Race closed: the state is read first. Once the job has ended, its logs do not grow any more.
        job = self._services.job_watcher.snapshot(self._job_id).job
        sizes = () if Removed.LOGS in job.removed else self._sizes(job)
        said = {"attempt": job.attempt, "ended": job.state.ended, "sizes": sizes}
        now = json.dumps(said)
        if now == seen[0]:
            return b"", seen, job.state.ended
        page, end = self._lines(job, dict(sizes), seen)
        data = json.dumps({**said, "lines": asdict(page) if page else None}, ensure_ascii=False)
        return format_sse_event(event="log", data_str=data), (now, job.attempt, end), job.state.ended

    def _lines(self, job: Job, sizes: Mapping[int, int], seen: _Seen) -> tuple[LogPage | None, int | None]:
        """Returns the lines that are new, and where they end."""
        if self._rank is None or self._rank not in sizes:
            return None, None
        path = log_file(Path(self._services.settings.storage) / job.id, job.attempt, self._rank)
        log = LogFile(attempt=job.attempt, rank=self._rank, path=path)
        _, attempt, after = seen
        if attempt != job.attempt or after is None or not 0 <= sizes[self._rank] - after <= _MOST_IN_STREAM:
            return None, log_pages.page_before(log, sizes[self._rank]).end
        page = log_pages.page_after(log, after)
        return page, page.end


def _logs(services: Context) -> JobLogs:
    return JobLogs(services.settings.storage, services.results)


def _log(services: Context, job_id: str, attempt: int, rank: int | None) -> Log:
    job = services.store.get(job_id)
    if Removed.LOGS in job.removed:
        raise NotFound(_why_none(job, attempt, rank, has_others=False))
    found = [log for log in _logs(services).of(job, attempt, rank) if log.rank == rank]
    if not found:
        raise NotFound(f"attempt {attempt} of job {job_id!r} has no log of rank {rank}")
    return found[0]
