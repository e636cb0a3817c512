"""Routes under /v1/jobs/{id} that change a job: cancel, pause, resume, resize, retry, priority, delete.

All are idempotent and do not wait.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from service.api.bodies import json_body, json_schema
from service.api.caller import By
from service.api.context import Services
from service.api.jobs import shown
from service.api.problems import documented
from service.api.schemas import JobDocument, PriorityRequest, ResizeRequest, RetryRequest

router = APIRouter(prefix="/v1/jobs/{job_id}", tags=["jobs"], responses=documented(404, 409, 422, 503))


@router.post("/cancel", status_code=202, summary="Cancel a job")
def cancel_job(services: Services, job_id: str, by: By) -> JobDocument:
    """Cancels a queued or paused job at once; a running job stops soon."""
    return shown(services.store.request_cancel(job_id, by=by), services.results)


@router.post("/pause", status_code=202, summary="Pause a job")
def pause_job(services: Services, job_id: str, by: By) -> JobDocument:
    """A running job saves a checkpoint at its next step and releases its workers. A queued job is held."""
    return shown(services.store.request_pause(job_id, by=by), services.results)


@router.post("/resume", status_code=202, summary="Resume a paused job")
def resume_job(services: Services, job_id: str, by: By) -> JobDocument:
    """Queues the job again, ordered by priority and age as before; it continues from its checkpoint.

    A job that is not paused stays unchanged. A job that is still pausing is a conflict (409).
    """
    return shown(services.store.request_resume(job_id, by=by), services.results)


@router.post(
    "/resize",
    status_code=202,
    responses=documented(413, 415),
    openapi_extra=json_schema(ResizeRequest),
    summary="Change a job's number of workers",
)
def resize_job(
    services: Services, job_id: str, request: Annotated[ResizeRequest, json_body(ResizeRequest)], by: By
) -> JobDocument:
    """Sets the number of workers from the next attempt on; `resources.workers` must be a range.

    A running job saves a checkpoint and continues on the new number once the nodes have room. Queued jobs
    come first. The training result does not depend on the number.
    """
    return shown(services.store.request_resize(job_id, request.workers, by=by), services.results)


@router.post(
    "/retry",
    status_code=202,
    responses=documented(413, 415),
    openapi_extra=json_schema(RetryRequest, required=False),
    summary="Retry a failed or cancelled job",
)
def retry_job(
    services: Services,
    job_id: str,
    by: By,
    request: Annotated[RetryRequest, json_body(RetryRequest, default=RetryRequest())],
) -> JobDocument:
    """Queues the job again with all its retries; it continues from its last checkpoint, in the same run.

    With `from_scratch` its checkpoints and files are removed, and it begins from step 0 in a new run. A job
    that has not ended stays unchanged. A job that succeeded, or of which something needed was removed, is a
    conflict (409).
    """
    job = services.store.request_retry(job_id, from_scratch=request.from_scratch, by=by)
    return shown(job, services.results)


@router.post(
    "/priority",
    status_code=202,
    responses=documented(413, 415),
    openapi_extra=json_schema(PriorityRequest),
    summary="Change a job's priority",
)
def set_priority(
    services: Services, job_id: str, request: Annotated[PriorityRequest, json_body(PriorityRequest)], by: By
) -> JobDocument:
    """Sets the priority of a job that has not ended, waiting or running; its spec keeps the old one."""
    return shown(services.store.request_priority(job_id, request.priority, by=by), services.results)


@router.delete("", status_code=204, summary="Delete an ended job")
def delete_job(
    services: Services,
    job_id: str,
    by: By,
    with_run: Annotated[bool, Query(description="Delete its MLflow run, too")] = False,
) -> None:
    """Hides the job at once; the scheduler then removes its row, run folder, logs, checkpoints and code.

    Code that other jobs use stays. A job that has not ended, or from whose checkpoints one that has not
    ended starts, is a conflict (409).
    """
    services.store.delete_job(job_id, with_run=with_run, by=by)
