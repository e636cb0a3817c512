"""Routes under /v1/jobs/{id}: cancel, pause, resume, resize. All are idempotent and answer at once."""

from __future__ import annotations

from fastapi import APIRouter

from service.api.context import Services
from service.api.jobs import shown
from service.api.problems import documented
from service.api.schemas import JobDocument, ResizeRequest

router = APIRouter(prefix="/v1/jobs/{job_id}", tags=["jobs"], responses=documented(404, 409, 503))


@router.post("/cancel", status_code=202, summary="Cancel a job")
def cancel_job(services: Services, job_id: str) -> JobDocument:
    """A job that waits or is paused is cancelled at once; one that runs is stopped soon."""
    return shown(services.store.request_cancel(job_id), services.results)


@router.post("/pause", status_code=202, summary="Pause a job")
def pause_job(services: Services, job_id: str) -> JobDocument:
    """A job that runs saves itself at its next step and gives its workers back; one that waits is held."""
    return shown(services.store.request_pause(job_id), services.results)


@router.post("/resume", status_code=202, summary="Resume a paused job")
def resume_job(services: Services, job_id: str) -> JobDocument:
    """It waits in its old place, by priority and age, and goes on from where it was saved.

    A job that is not paused is left as it is; one that is still pausing is a conflict.
    """
    return shown(services.store.request_resume(job_id), services.results)


@router.post("/resize", status_code=202, summary="Change a job's number of workers")
def resize_job(services: Services, job_id: str, request: ResizeRequest) -> JobDocument:
    """For a job whose `resources.workers` is a range: it gets so many from its next attempt on, and no more.

    One that runs with others is stopped for that once the machines have room, and goes on where it was. Jobs
    that wait come first. The result does not depend on the number.
    """
    return shown(services.store.request_resize(job_id, request.workers), services.results)
