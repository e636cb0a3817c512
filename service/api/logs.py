"""Route /v1/jobs/{id}/logs: what a job prints, whole or as it comes (server-sent events).

A job's log is its attempts' logs in order, with a header line before the second and every later one. A
place in it is `ATTEMPT:CHARACTERS`; it stays valid whatever happens to the logs of earlier attempts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Header, Query, Response
from fastapi.responses import PlainTextResponse

from service.api.context import Context, Services
from service.api.problems import documented
from service.api.sse import event, stream
from service.errors import Refused, Unavailable
from service.jobs import ACTIVE, Job
from service.launch import submission_id
from training.spec import Problem

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])


@dataclass(frozen=True, kw_only=True)
class Place:
    """How far a reader has come."""

    attempt: int = 1
    offset: int = 0

    def __str__(self) -> str:
        return f"{self.attempt}:{self.offset}"


@router.get(
    "/{job_id}/logs",
    response_class=Response,
    responses={
        200: {
            "description": "The log; with `follow`, events `log` (a line each) and at last `end` (the state)",
            "content": {"text/plain": {}, "text/event-stream": {}},
        },
        **documented(404, 422, 503),
    },
    summary="What a job printed",
)
def get_logs(
    services: Services,
    job_id: str,
    tail: Annotated[int | None, Query(ge=0, description="The last lines alone")] = None,
    follow: Annotated[bool, Query(description="Go on until the job has ended")] = False,
    accept: Annotated[str, Header(include_in_schema=False)] = "",
    last_event_id: Annotated[str, Header(description="Go on behind this event")] = "",
) -> Response:
    job = services.store.get(job_id)
    if follow or "text/event-stream" in accept:
        return stream(partial(_news, job.id, services), _place(last_event_id))
    return PlainTextResponse(_tail(_whole_log(job, services), tail))


def _place(event_id: str) -> Place:
    if not event_id:
        return Place()
    if not (match := re.fullmatch(r"([1-9]\d{0,8}):(\d{1,18})", event_id)):
        problem = Problem(key="Last-Event-ID", message="is not one that this service gave out")
        raise Refused("the place in the log is not valid", [problem])
    return Place(attempt=int(match[1]), offset=int(match[2]))


def _whole_log(job: Job, services: Context) -> str:
    return "".join(
        _header(number) + _attempt_log(job, number, services) for number in range(1, job.attempt + 1)
    )


def _header(number: int) -> str:
    return "" if number == 1 else f"==> attempt {number} <==\n"


def _tail(text: str, lines: int | None) -> str:
    if lines is None:
        return text
    every = text.splitlines(keepends=True)
    return "".join(every[max(len(every) - lines, 0) :])


def _attempt_log(job: Job, number: int, services: Context) -> str:
    """From Ray while the attempt runs, from MLflow once it was archived there: a pause may last for days."""
    cluster_id = submission_id(job.id, number)
    if number == job.attempt and job.state in ACTIVE:
        return services.cluster.logs(cluster_id)
    try:
        archived = services.results.download(job.run, f"logs/attempt-{number}.log") if job.run else None
    except Unavailable:
        if job.archived_at:  # Ray may have forgotten it by now: better no answer than half of one
            raise
        archived = None
    return services.cluster.logs(cluster_id) if archived is None else archived


def _news(job_id: str, services: Context, place: Place) -> tuple[str, Place, bool]:
    """The events since `place`, where that leaves the reader, and whether the job has ended."""
    job = services.store.get(job_id)  # before the log: once it has ended, the log that follows is whole
    events: list[str] = []
    while place.attempt <= job.attempt:
        over = place.attempt < job.attempt or job.state.ended
        text = _attempt_log(job, place.attempt, services)
        for line, reached in _lines(text, place, over=over):
            events.append(event("log", line, reached))
            place = reached
        if place.attempt == job.attempt:
            break
        place = Place(attempt=place.attempt + 1)
        events.append(event("log", _header(place.attempt).rstrip("\n"), place))
    if job.state.ended:
        events.append(event("end", job.state))
    return "".join(events), place, job.state.ended


def _lines(text: str, place: Place, *, over: bool) -> Iterator[tuple[str, Place]]:
    """Each line behind `place` and where it ends. The last, unfinished one only when no more will come."""
    while place.offset < len(text):
        end = text.find("\n", place.offset)
        if end < 0 and not over:
            return
        line = text[place.offset :] if end < 0 else text[place.offset : end]
        place = Place(attempt=place.attempt, offset=place.offset + len(line) + (end >= 0))
        yield line, place
