"""Routes under /v1/jobs: submit, validate, list, show, metrics."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request, Response
from pydantic import AwareDatetime, StringConstraints

from service.api.access import Asking
from service.api.bodies import SPEC_TYPES, SpecBody, read_spec
from service.api.context import Services
from service.api.problems import documented
from service.api.schemas import JobDocument, JobPage, PointDocument, PointPage, ValidationDocument
from service.backends.tracking import Results
from service.errors import Unavailable
from service.jobs.job import Job, State
from service.queue import lease
from service.scheduling.scheduler import forecast
from service.start_from import resolved

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])

_EXAMPLE = {
    "model": {"class_path": "training.models.ConvNet", "init_args": {"num_classes": 10}},
    "data": {"class_path": "training.data.Digits"},
    "training": {"global_batch_size": 64, "max_epochs": 5},
    "resources": {"workers": 2},
}
_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "The spec itself, as JSON or YAML",
        "content": {
            kind: {"schema": {"$ref": "#/components/schemas/Spec"}, "example": _EXAMPLE}
            for kind in SPEC_TYPES[:2]
        },
    }
}
_TEXT = r"^[^\x00]*$"
Label = Annotated[str, StringConstraints(pattern=r"^[^\x00:]+:[^\x00]*$")]
IdempotencyKey = Annotated[
    str | None,
    Header(min_length=1, max_length=255, description="The same key and spec return the same job"),
]


@router.post(
    "",
    status_code=201,
    responses=documented(413, 415, 422, 503),
    openapi_extra=_BODY,
    summary="Queue a job",
)
def create_job(
    request: Request,
    response: Response,
    services: Services,
    body: SpecBody,
    caller: Asking,
    idempotency_key: IdempotencyKey = None,
) -> JobDocument:
    """A job that was acknowledged with 201 is never lost.

    A repeated Idempotency-Key returns the job of the first request, with `Idempotency-Replayed: true`.
    """
    spec, _ = read_spec(body, services)
    spec = resolved(spec, services.store, services.settings)
    job, created = services.store.create_job(spec, idempotency_key=idempotency_key, user=caller.user)
    response.headers["Location"] = str(request.url_for("get_job", job_id=job.id).path)
    if not created:
        response.headers["Idempotency-Replayed"] = "true"
    return shown(job, services.results)


@router.post(
    "/validate",
    responses=documented(413, 415, 422, 503),
    openapi_extra=_BODY,
    summary="Check a spec without queueing it",
)
def validate_job(services: Services, body: SpecBody) -> ValidationDocument:
    """Changes nothing. A spec that `POST /v1/jobs` would refuse gets the same answer here."""
    spec, notes = read_spec(body, services)
    spec = resolved(spec, services.store, services.settings)
    queue, active = services.store.queue(), services.store.active()
    try:
        scheduler = lease.check_heard(services.store.scheduler())
        nodes = lease.machines(scheduler)
    except Unavailable as error:
        return ValidationDocument.of(spec, None, str(error), notes)
    sweeps = services.store.sweep_limits(queue)
    expected = forecast(spec, queue, active, nodes, now=scheduler.clock, sweeps=sweeps)
    return ValidationDocument.of(spec, expected, expected.reason, notes)


@router.get("", responses=documented(422, 503), summary="List jobs, newest first")
def list_jobs(
    services: Services,
    state: Annotated[list[State] | None, Query(description="Jobs in any of these")] = None,
    id_prefix: Annotated[
        str | None, Query(alias="id", pattern=_TEXT, description="Beginning of the id")
    ] = None,
    name: Annotated[str | None, Query(pattern=_TEXT)] = None,
    experiment: Annotated[str | None, Query(pattern=_TEXT, description="`tracking.experiment`")] = None,
    since: Annotated[
        AwareDatetime | None, Query(description="Created then or later; ISO 8601 with a time zone")
    ] = None,
    label: Annotated[list[Label] | None, Query(description="KEY:VALUE; jobs with all of these")] = None,
    sweep: Annotated[str | None, Query(pattern=_TEXT, description="Id of a sweep; its jobs")] = None,
    user: Annotated[str | None, Query(pattern=_TEXT, description="User of the key that submitted")] = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    cursor: str | None = None,
) -> JobPage:
    """Returns one page of the jobs that match every given filter."""
    jobs, next_cursor = services.store.list_jobs(
        states=state or (),
        id_prefix=id_prefix,
        name=name,
        experiment=experiment,
        since=since,
        labels=dict(map(_pair, label or ())),
        sweep=sweep,
        user=user,
        cursor=cursor,
        limit=limit,
    )
    return JobPage(items=[shown(job, services.results) for job in jobs], next_cursor=next_cursor)


@router.get("/{job_id}", responses=documented(404, 503), summary="Show a job")
def get_job(services: Services, job_id: str) -> JobDocument:
    """Returns the job as it is in the database."""
    return shown(services.store.get(job_id), services.results)


@router.get(
    "/{job_id}/metrics", responses=documented(404, 503), summary="List every point of a job's metrics"
)
def get_metrics(
    services: Services,
    job_id: str,
    name: Annotated[list[str] | None, Query(description="Only these; system metrics must be named")] = None,
) -> PointPage:
    """Returns the points from the job's MLflow run, by name and step."""
    run = services.store.get(job_id).run
    points = services.results.history(run, name) if run else []
    return PointPage(items=[PointDocument.model_validate(point) for point in points])


def _pair(label: str) -> tuple[str, str]:
    key, _, value = label.partition(":")
    return key, value


def shown(job: Job, results: Results) -> JobDocument:
    """Returns the document of `job`, built from its row alone; `results` only formats the URL."""
    return JobDocument.of(job, results.url(job.run) if job.run else None)
