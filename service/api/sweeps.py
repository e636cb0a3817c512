"""Routes under /v1/sweeps: several jobs from one spec, and commands on all of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request, Response

from service.api.access import Asking
from service.api.bodies import SPEC_TYPES, SpecBody, read_report
from service.api.caller import By
from service.api.context import Context, Services
from service.api.jobs import IdempotencyKey, NamePattern, Text
from service.api.problems import documented
from service.api.sweep_bodies import read_sweep
from service.api.sweep_schemas import (
    PlannedPointDocument,
    SweepDocument,
    SweepPage,
    SweepSummary,
    SweepValidationDocument,
)
from service.errors import Conflict
from service.jobs.sweep import Sweep

router = APIRouter(prefix="/v1/sweeps", tags=["sweeps"])

_EXAMPLE = {
    "name": "lr",
    "spec": {
        "model": {"class_path": "training.models.ConvNet"},
        "data": {"class_path": "training.data.Digits"},
    },
    "grid": {"optimizer.init_args.lr": [0.1, 0.01]},
    "repeat": 3,
    "max_running": 2,
}
_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "The sweep, as JSON or YAML",
        "content": {
            kind: {"schema": {"$ref": "#/components/schemas/SweepRequest"}, "example": _EXAMPLE}
            for kind in SPEC_TYPES[:2]
        },
    }
}


@router.post(
    "",
    status_code=201,
    responses=documented(413, 415, 422, 503),
    openapi_extra=_BODY,
    summary="Queue a sweep",
)
def create_sweep(
    request: Request,
    response: Response,
    services: Services,
    body: SpecBody,
    caller: Asking,
    idempotency_key: IdempotencyKey = None,
) -> SweepDocument:
    """Queues a job for each point, all or none. Points with the same spec are one job.

    A repeated Idempotency-Key returns the sweep of the first request, with `Idempotency-Replayed: true`.
    """
    read = read_sweep(body, services)
    sweep = replace(read.sweep, user=caller.user)
    sweep, created = services.store.create_sweep(sweep, read.points, idempotency_key=idempotency_key)
    response.headers["Location"] = str(request.url_for("get_sweep", sweep_id=sweep.id).path)
    if not created:
        response.headers["Idempotency-Replayed"] = "true"
    return _shown(sweep, services)


@router.post(
    "/validate",
    responses=documented(413, 415, 422, 503),
    openapi_extra=_BODY,
    summary="Check a sweep without queueing it",
)
def validate_sweep(services: Services, body: SpecBody) -> SweepValidationDocument:
    """Returns the points. Changes nothing. What `POST /v1/sweeps` would refuse gets the same answer here."""
    read = read_sweep(body, services)
    return SweepValidationDocument(points=list(map(PlannedPointDocument.of, read.points)), notes=read.notes)


@router.get("", responses=documented(422, 503), summary="List sweeps, newest first")
def list_sweeps(
    services: Services,
    id_prefix: Annotated[Text | None, Query(alias="id", description="Beginning of the id")] = None,
    name: NamePattern = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    cursor: Annotated[str | None, Query(max_length=100)] = None,
) -> SweepPage:
    """Returns one page of the sweeps that match every given filter, without their points."""
    found, next_cursor = services.store.list_sweeps(
        id_prefix=id_prefix, name=name, cursor=cursor, limit=limit
    )
    states = services.store.states_of_sweeps([sweep.id for sweep in found])
    items = [SweepSummary.of(sweep, states[sweep.id], _url(sweep, services)) for sweep in found]
    return SweepPage(items=items, next_cursor=next_cursor)


@router.get("/{sweep_id}", responses=documented(404, 503), summary="Show a sweep")
def get_sweep(services: Services, sweep_id: str) -> SweepDocument:
    """Returns the sweep and its points as they are in the database."""
    return _shown(services.store.get_sweep(sweep_id), services)


@router.post(
    "/{sweep_id}/cancel", status_code=202, responses=documented(404, 409, 503), summary="Cancel a sweep"
)
def cancel_sweep(services: Services, sweep_id: str, by: By) -> SweepDocument:
    """Cancels all its jobs that have not ended: those that wait at once, those that run soon."""
    return _shown(services.store.cancel_sweep(sweep_id, by=by), services)


@router.post(
    "/{sweep_id}/pause", status_code=202, responses=documented(404, 409, 503), summary="Pause a sweep"
)
def pause_sweep(services: Services, sweep_id: str, by: By) -> SweepDocument:
    """Running jobs save a checkpoint and release their workers; no job of the sweep starts."""
    return _shown(services.store.pause_sweep(sweep_id, by=by), services)


@router.post(
    "/{sweep_id}/resume",
    status_code=202,
    responses=documented(404, 409, 503),
    summary="Resume a paused sweep",
)
def resume_sweep(services: Services, sweep_id: str, by: By) -> SweepDocument:
    """Queues its paused jobs again; each continues from its checkpoint.

    A sweep that is not paused stays unchanged. While a job is still pausing, this is a conflict (409).
    """
    return _shown(services.store.resume_sweep(sweep_id, by=by), services)


@router.put(
    "/{sweep_id}/report/{name}",
    status_code=204,
    responses=documented(404, 409, 413, 415, 422, 503),
    openapi_extra={"requestBody": {"required": True, "content": {"text/html": {}, "text/markdown": {}}}},
    summary="Store a report of a sweep",
)
def put_report(
    services: Services,
    sweep_id: str,
    name: Literal["report.md", "report.html"],
    text: Annotated[str, Depends(read_report)],
) -> None:
    """Stores it as an artifact of the sweep's run in MLflow. Idempotent: replaces an earlier one."""
    run = services.store.get_sweep(sweep_id).run
    if run is None:
        raise Conflict(f"sweep {sweep_id} has no run in MLflow yet: none of its jobs has started")
    services.results.upload(run, name, text)


def _shown(sweep: Sweep, services: Context) -> SweepDocument:
    jobs = services.store.jobs_of_sweep(sweep.id)
    return SweepDocument.with_jobs(sweep, jobs, _url(sweep, services))


def _url(sweep: Sweep, services: Context) -> str | None:
    return services.results.url(sweep.run) if sweep.run else None
