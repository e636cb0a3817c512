"""Routes /v1/jobs/{id}/events and /v1/events: the changes of one job, and of all (server-sent events).

change  one change: a row of the table of events. Its id is that of the row
job     the job as it is now, with its progress: after changes, and whenever its progress has changed
end     the state in which the job has ended
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Self

from fastapi import APIRouter, Header, Query, Response
from fastapi.sse import format_sse_event

from service.api.context import Context, Services
from service.api.jobs import TEXT, Label, NamePattern, label_pairs
from service.api.looks import ALL_EVENTS, job_topic
from service.api.problems import documented
from service.api.schemas import EventDocument
from service.api.sse import FULL
from service.errors import Refused
from service.queue.filters import Filters
from service.queue.stored_events import JobEvent
from training.spec import Problem

router = APIRouter(prefix="/v1", tags=["jobs"])

_LIMIT = 1000
"""Events in one query: more than fit into a full portion, as each takes over 200 bytes."""
_NUMBER = re.compile(r"\d{1,15}")
_VERSION = re.compile(r"[0-9a-f]{16}")
_STREAM: dict[str, Any] = {"text/event-stream": {}}
_SHOWN_POSITION = (
    "is not one that this service gave out for this stream: connect without it, then all is sent"
)


@dataclass(frozen=True, kw_only=True)
class JobPosition:
    """A reader's position in the events of a job.

    event: the id of the last change. version: that of the last document; "" before the first.
    """

    event: int = 0
    version: str = ""

    def __str__(self) -> str:
        """Returns the event id, EVENT or EVENT-VERSION."""
        return "-".join(filter(None, [str(self.event), self.version]))

    @classmethod
    def parse(cls, event_id: str) -> Self:
        """Parses an event id; a version alone is that of a server without changes. Raises Refused."""
        event, _, version = event_id.partition("-")
        if _VERSION.fullmatch(event_id):
            return cls(version=event_id)
        if not _NUMBER.fullmatch(event) or (version and not _VERSION.fullmatch(version)):
            raise _refusal()
        return cls(event=int(event), version=version)


@router.get(
    "/jobs/{job_id}/events",
    response_class=Response,
    responses={
        200: {
            "description": "The events `change` (each change of the job, an `EventDocument`), `job` (the job "
            "as in `GET /v1/jobs/{job_id}`, after changes and progress) and finally `end` (the state)",
            "content": _STREAM,
        },
        **documented(404, 422, 503),
    },
    summary="Follow a job",
)
def get_events(
    services: Services,
    job_id: str,
    last_event_id: Annotated[str, Header(description="Continue after this event")] = "",
) -> Response:
    """Streams every change of the job from the first one on, until it has ended.

    With Last-Event-ID continues after that event, and misses and repeats none.
    """
    snapshot = services.job_watcher.snapshot(job_id)  # raises NotFound before the stream begins
    position = JobPosition.parse(last_event_id) if last_event_id else JobPosition()
    if position.event > snapshot.last_event:  # the snapshot may be older than the reader
        last = services.store.last_events([job_id])
        if position.event > last.get(job_id, 0):
            raise _refusal()
    return services.streams.response(job_topic(job_id), "", partial(_job_news, job_id, services), position)


def _job_news(job_id: str, services: Context, seen: JobPosition) -> tuple[bytes, JobPosition, bool]:
    # Race closed: the job is read before its events. If it has ended, its last event is among them.
    snapshot = services.job_watcher.snapshot(job_id)
    found = services.store.events_of_job(job_id, after=seen.event, limit=_LIMIT)
    changes, last, complete = _encoded((event, snapshot.job.name) for event in found)
    now = JobPosition(event=last or seen.event, version=seen.version)
    if not complete:
        return changes, now, False
    if snapshot.version != seen.version:
        now = JobPosition(event=now.event, version=snapshot.version)
        changes += format_sse_event(event="job", id=str(now), data_str=snapshot.document)
    if snapshot.job.state.ended:
        changes += format_sse_event(event="end", data_str=snapshot.job.state)
    return changes, now, snapshot.job.state.ended


@router.get(
    "/events",
    response_class=Response,
    responses={
        200: {
            "description": "The events `change` (each change of a job, an `EventDocument`); the first event "
            "has an id and no data: it is the position from which the stream begins",
            "content": _STREAM,
        },
        **documented(422, 503),
    },
    summary="Follow all jobs",
)
def get_all_events(
    services: Services,
    name: NamePattern = None,
    experiment: Annotated[str | None, Query(pattern=TEXT, description="`tracking.experiment`")] = None,
    label: Annotated[list[Label] | None, Query(description="KEY:VALUE; jobs with all of these")] = None,
    sweep: Annotated[str | None, Query(pattern=TEXT, description="Id of a sweep; its jobs")] = None,
    after: Annotated[
        int | None, Query(ge=0, le=10**15, description="Begin after this event; 0: with the first one")
    ] = None,
    last_event_id: Annotated[str, Header(description="Continue after this event; overrides `after`")] = "",
) -> Response:
    """Streams every change of the jobs that match every given filter, from now on, and does not end.

    With Last-Event-ID continues after that event, and misses and repeats none. Progress is not among them.
    """
    if last_event_id and not _NUMBER.fullmatch(last_event_id):
        raise _refusal()
    begin = int(last_event_id) if last_event_id else after
    if begin is None:
        begin = services.event_horizon.wait()
    labels = label_pairs(label)
    filters = Filters(name=name, experiment=experiment, labels=labels, sweep=sweep)
    view = (name, experiment, sweep, tuple(sorted(labels)))
    first = format_sse_event(id=str(begin))
    return services.streams.response(ALL_EVENTS, view, partial(_news, services, filters), begin, first)


def _news(services: Context, filters: Filters, seen: int) -> tuple[bytes, int, bool]:
    up_to = services.event_horizon.now()
    if up_to is None or up_to <= seen:
        return b"", seen, False
    changes, last, complete = _encoded(
        services.store.events(after=seen, up_to=up_to, limit=_LIMIT, **filters)
    )
    return changes, (up_to if complete else last), False


def _encoded(events: Iterable[tuple[JobEvent, str]]) -> tuple[bytes, int, bool]:
    """Returns a portion of the events, the last id in it (0 if there is none), and whether it has all."""
    portion: list[bytes] = []
    length, last, count = 0, 0, 0
    for event, name in events:
        if length >= FULL:
            return b"".join(portion), last, False
        document = EventDocument.of(event, name).model_dump_json()
        portion.append(format_sse_event(event="change", id=str(event.id), data_str=document))
        length, last, count = length + len(portion[-1]), event.id, count + 1
    return b"".join(portion), last, count < _LIMIT


def _refusal() -> Refused:
    problem = Problem(key="Last-Event-ID", message=_SHOWN_POSITION)
    return Refused("the position in the events is not valid", [problem])
