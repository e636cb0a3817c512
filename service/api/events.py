"""Route /v1/jobs/{id}/events: a job as it is now, and after each change (server-sent events)."""

from __future__ import annotations

from functools import partial
from typing import Annotated

from fastapi import APIRouter, Header, Response
from fastapi.sse import format_sse_event

from service.api.context import Context, Services
from service.api.problems import documented
from service.api.sse import stream

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])


@router.get(
    "/{job_id}/events",
    response_class=Response,
    responses={
        200: {
            "description": "The events `job` (as in `GET /v1/jobs/{job_id}`) and finally `end` (the state)",
            "content": {"text/event-stream": {}},
        },
        **documented(404, 503),
    },
    summary="Follow a job",
)
def get_events(
    services: Services,
    job_id: str,
    last_event_id: Annotated[
        str, Header(description="Skip the first event if the job is as in this one")
    ] = "",
) -> Response:
    """Streams the job until it has ended."""
    services.job_watcher.snapshot(job_id)  # raises NotFound before the stream begins
    return stream(partial(_news, job_id, services), last_event_id, services.stopping)


def _news(job_id: str, services: Context, seen: str) -> tuple[bytes, str, bool]:
    """Returns the job's event unless the reader has seen it. Its id is a digest of its data."""
    snapshot = services.job_watcher.snapshot(job_id)
    events, state = b"", snapshot.job.state
    if snapshot.version != seen:
        events = format_sse_event(event="job", id=snapshot.version, data_str=snapshot.document)
    if state.ended:
        events += format_sse_event(event="end", data_str=state)
    return events, snapshot.version, state.ended
