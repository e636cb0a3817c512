"""Route /v1/jobs/{id}/events: a job as it is now, and again whenever it has changed (server-sent events)."""

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
            "description": "Events `job` (the job, as `GET /v1/jobs/{job_id}` has it) and at last `end` (its "
            "state)",
            "content": {"text/event-stream": {}},
        },
        **documented(404, 503),
    },
    summary="Follow a job",
)
def get_events(
    services: Services,
    job_id: str,
    last_event_id: Annotated[str, Header(description="Leave out what this event has said")] = "",
) -> Response:
    services.job_watcher.sight(job_id)  # one that does not exist is said before a stream begins
    return stream(partial(_news, job_id, services), last_event_id)


def _news(job_id: str, services: Context, seen: str) -> tuple[bytes, str, bool]:
    """An event's id is a digest of what it says: whoever comes again is told only what is different."""
    sight = services.job_watcher.sight(job_id)
    events, state = b"", sight.job.state
    if sight.version != seen:
        events = format_sse_event(event="job", id=sight.version, data_str=sight.document)
    if state.ended:
        events += format_sse_event(event="end", data_str=state)
    return events, sight.version, state.ended
