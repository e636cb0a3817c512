"""The tab of a job's curves: every point of every metric, drawn by the browser.

A script fetches the points that there are, portion by portion, from the job's spool. From then on the stream
that keeps the page's header up to date also brings the lines that the spool grows by, made once for all who
look at the job. What the spool no longer has comes from the tracking server.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from service.api.context import Context, Services
from service.errors import NotFound
from service.job_points import JobPoints, Kind, Position
from service.jobs.job import Job
from service.web.histories import KINDS, Histories

router = APIRouter(include_in_schema=False)


def values(request: Request, services: Context, job: Job) -> dict[str, Any]:  # noqa: ARG001
    """Returns what the script has to know to show steps as epochs: how many steps one has, if known."""
    epochs = (job.spec.get("training") or {}).get("max_epochs")
    total = job.progress.total_steps if job.progress else None
    return {"steps_per_epoch": total / epochs if epochs and total else None}


@router.get("/data/jobs/{job_id}/points")
def read_points(
    services: Services,
    job_id: str,
    after: Annotated[str, Query(max_length=100)] = "",
    kind: Kind = Kind.CURVES,
) -> Response:
    """Returns lines `time step value name` of the job's spool after a position, up to a few megabytes.

    Headers: Points-Position, for the next request; Points-More: whether there are further lines;
    Points-Restarted: whether these lines are the first ones of another spool than before;
    Points-Earlier: whether the tracking server has points that the spool lacks.
    """
    job = services.store.get(job_id)
    portion = JobPoints(services.settings.storage).read(job_id, Position.parse(after), kind)
    earlier = portion.earlier and job.run is not None and (job.progress is not None or job.attempt > 0)
    headers = {
        "Points-Position": str(portion.position),
        "Points-More": _yes(portion.more),
        "Points-Restarted": _yes(portion.restarted),
        "Points-Earlier": _yes(earlier),
        "Cache-Control": "no-store",
    }
    return Response(portion.text, headers=headers, media_type="text/plain; charset=utf-8")


@router.get("/data/jobs/{job_id}/history")
def read_history(request: Request, services: Services, job_id: str, kind: str = "curves") -> Response:
    """Returns all points from the tracking server, in the same lines. It may take long."""
    if kind not in KINDS:
        raise NotFound(f"there are no points {kind!r}; there are {', '.join(KINDS)}")
    lines = _histories(request).lines(services.store.get(job_id), kind)
    headers = {"Cache-Control": "no-store"}
    return Response(lines, headers=headers, media_type="text/plain; charset=utf-8")


def _histories(request: Request) -> Histories:
    """Returns those of this server: made for its first request, as nothing else needs them."""
    state = request.app.state
    if not hasattr(state, "histories"):
        state.histories = Histories(state.context.results)
    found: Histories = state.histories
    return found


def _yes(value: bool) -> str:
    return "yes" if value else "no"
