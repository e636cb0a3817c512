"""Routes under /v1/jobs/{id}: cancel, pause, resume, resize. All are idempotent and do not wait."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from service.api.bodies import JSON_TYPE, ResizeBody
from service.api.context import Services
from service.api.jobs import shown
from service.api.problems import documented
from service.api.schemas import JobDocument

router = APIRouter(prefix="/v1/jobs/{job_id}", tags=["jobs"], responses=documented(404, 409, 503))

_SCHEMA = {"$ref": "#/components/schemas/ResizeRequest"}
_BODY: dict[str, Any] = {"requestBody": {"required": True, "content": {JSON_TYPE: {"schema": _SCHEMA}}}}


@router.post("/cancel", status_code=202, summary="Cancel a job")
def cancel_job(services: Services, job_id: str) -> JobDocument:
    """Cancels a queued or paused job at once; a running job stops soon."""
    return shown(services.store.request_cancel(job_id), services.results)


@router.post("/pause", status_code=202, summary="Pause a job")
def pause_job(services: Services, job_id: str) -> JobDocument:
    """A running job saves a checkpoint at its next step and releases its workers. A queued job is held."""
    return shown(services.store.request_pause(job_id), services.results)


@router.post("/resume", status_code=202, summary="Resume a paused job")
def resume_job(services: Services, job_id: str) -> JobDocument:
    """Queues the job again, ordered by priority and age as before; it continues from its checkpoint.

    A job that is not paused stays unchanged. A job that is still pausing is a conflict (409).
    """
    return shown(services.store.request_resume(job_id), services.results)


@router.post(
    "/resize",
    status_code=202,
    responses=documented(413, 415),
    openapi_extra=_BODY,
    summary="Change a job's number of workers",
)
def resize_job(services: Services, job_id: str, request: ResizeBody) -> JobDocument:
    """Sets the number of workers from the next attempt on; `resources.workers` must be a range.

    A running job saves a checkpoint and continues on the new number once the nodes have room. Queued jobs
    come first. The training result does not depend on the number.
    """
    return shown(services.store.request_resize(job_id, request.workers), services.results)
