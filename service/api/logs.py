"""Route /v1/jobs/{id}/logs: the output of a job's ranks, as text or as server-sent events."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Header, Query, Response
from fastapi.responses import StreamingResponse
from fastapi.sse import format_sse_event

from service.api.context import Context, Services
from service.api.log_events import Follower, LogPosition, beginning
from service.api.looks import log_topic
from service.api.problems import documented
from service.errors import NotFound, Refused, Unavailable
from service.job_logs import CHUNK, JobLogs, Log, View, tail_offset
from service.jobs.job import Job, Removed
from training.spec import Problem

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])


@router.get(
    "/{job_id}/logs",
    response_class=Response,
    responses={
        200: {
            "description": "The logs of all attempts and ranks in order, each after a header line if there "
            "are several; with `follow`, the events `source` (the attempt and rank of the lines that "
            "follow), `log` (one line each) and finally `end` (the job's state)",
            "content": {"text/plain": {}, "text/event-stream": {}},
        },
        **documented(404, 422, 503),
    },
    summary="Show a job's log",
)
def get_logs(
    services: Services,
    job_id: str,
    rank: Annotated[int | None, Query(ge=0, description="Only the log of this rank")] = None,
    attempt: Annotated[int | None, Query(ge=1, description="Only the logs of this attempt")] = None,
    tail: Annotated[
        int | None, Query(ge=0, description="Only this many last lines of each rank in the latest attempt")
    ] = None,
    follow: Annotated[bool, Query(description="Stream until the job, or the attempt, has ended")] = False,
    accept: Annotated[str, Header(include_in_schema=False)] = "",
    last_event_id: Annotated[str, Header(description="Continue after this event")] = "",
) -> Response:
    """Returns the log so far, or streams it with `follow` or `Accept: text/event-stream`."""
    job = services.store.get(job_id)
    view, logs = View(rank=rank, attempt=attempt), JobLogs(services.settings.storage, services.results)
    follow = follow or "text/event-stream" in accept
    _check_attempt(job, attempt)
    if Removed.LOGS in job.removed:
        raise NotFound(
            f"the logs of job {job.id!r} were removed by retention; the run in MLflow has a copy among its "
            "artifacts (logs/)"
        )
    if rank is not None and (job.state.ended or not follow):
        _check_rank(job, rank, view, logs)
    if follow:
        return _events(job, logs, view, tail, last_event_id, services)
    return _text(job, logs, view, tail)


def _check_attempt(job: Job, attempt: int | None) -> None:
    if attempt is not None and attempt > job.attempt:
        raise NotFound(f"job {job.id!r} has no attempt {attempt}; its latest attempt is {job.attempt}")


def _check_rank(job: Job, rank: int, view: View, logs: JobLogs) -> None:
    """Raises NotFound for a rank that the job does not have. A rank without a log yet is accepted."""
    found = [log for attempt in view.attempts(job) for log in logs.of(job, attempt)]
    ranks = sorted({log.rank for log in found if log.rank is not None})
    if found and not ranks:
        raise NotFound(f"job {job.id!r} ran in an older version, which kept one log of all ranks")
    if found and rank not in ranks and rank >= (job.workers or 0):
        raise NotFound(f"job {job.id!r} has no log of rank {rank}, only of {', '.join(map(str, ranks))}")


def _events(
    job: Job, logs: JobLogs, view: View, tail: int | None, last_event_id: str, services: Context
) -> Response:
    start = None if last_event_id else beginning(job, logs, view, tail)
    position = start or LogPosition.parse(last_event_id)
    if view.attempt not in {None, position.attempt}:
        problem = Problem(key="Last-Event-ID", message=f"is not from attempt {view.attempt}")
        raise Refused("the position in the log is not valid", [problem])
    follower = Follower(lambda: services.job_watcher.snapshot(job.id).job, logs, view)
    # With `tail`, the reader gets its place at once, so that it resumes there if this connection breaks.
    first = b"" if tail is None or start is None else format_sse_event(id=str(start))
    return services.streams.response(log_topic(job.id), view, follower, position, first)


@dataclass(frozen=True, kw_only=True)
class _Part:
    """A range of bytes of a log, preceded by `head`."""

    log: Log
    head: bytes
    start: int
    end: int

    @property
    def size(self) -> int:
        return len(self.head) + self.end - self.start


def _text(job: Job, logs: JobLogs, view: View, tail: int | None) -> Response:
    """Returns the log so far. Content-Length lets the client detect a truncated response."""
    attempts = list(view.attempts(job))
    if tail is not None:
        attempts = [] if (latest := logs.latest(job, view)) is None else [latest]
    found = [log for attempt in attempts for log in logs.of(job, attempt, view.rank)]
    parts = _parts(found, headers=view.needs_headers(job, found), tail=tail)
    return StreamingResponse(
        _content(parts),
        media_type="text/plain",
        headers={"Content-Length": str(sum(part.size for part in parts)), "Cache-Control": "no-store"},
    )


def _parts(logs: list[Log], *, headers: bool, tail: int | None) -> list[_Part]:
    parts, torn = [], False
    for log in logs:
        start, end = 0 if tail is None else tail_offset(log, tail), log.size()
        head = ("\n" if torn else "") + f"{log.header}\n" if headers else ""
        parts.append(_Part(log=log, head=head.encode(), start=start, end=end))
        torn = start < end and log.read(end - 1, 1) != b"\n"
    return parts


def _content(parts: list[_Part]) -> Iterator[bytes]:
    for part in parts:
        yield part.head
        for offset in range(part.start, part.end, CHUNK):
            wanted = min(CHUNK, part.end - offset)
            if len(data := part.log.read(offset, wanted)) < wanted:
                raise Unavailable("the run folder", "a log file was truncated")
            yield data
