"""Routes under /v1/jobs: submit, validate, list, show, metrics."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request, Response, params
from fastapi.exceptions import RequestValidationError
from pydantic import AwareDatetime, StringConstraints, TypeAdapter, ValidationError
from starlette.concurrency import run_in_threadpool

from service.api.access import caller_of
from service.api.bodies import SPEC_TYPES, SpecBody, SpecText, read_spec, read_spec_at_once, spec_body
from service.api.context import Context, Services, services_of
from service.api.direct import DirectRoute
from service.api.problems import documented
from service.api.schemas import (
    JobDocument,
    JobPage,
    PointDocument,
    PointPage,
    ValidationDocument,
    json_response,
)
from service.backends.tracking import Results
from service.errors import Unavailable
from service.jobs.job import Job, State
from service.queue import lease
from service.queue.job_lists import Order
from service.scheduling.expectation import expected_start
from service.scheduling.scheduler import forecast
from service.start_from import resolved
from training.spec import Spec

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
TEXT = r"^[^\x00]*$"
Text = Annotated[str, StringConstraints(pattern=TEXT, max_length=500)]
NamePattern = Annotated[
    Text | None,
    Query(
        description="This name; with `*` (any text) or `?` (one character) in it, whole names that match, "
        "where `\\` before one of these is the character itself"
    ),
]
Label = Annotated[str, StringConstraints(pattern=r"^[^\x00:]+:[^\x00]*$", max_length=3_000)]
IdempotencyKey = Annotated[
    str | None,
    Header(min_length=1, max_length=255, description="The same key and spec return the same job"),
]


_KEY_HEADER = "idempotency-key"
_KEY: TypeAdapter[str | None] = TypeAdapter(IdempotencyKey)
_KEY_SCHEMA = _KEY.json_schema()
_KEY_PARAMETER = {
    "name": _KEY_HEADER,
    "in": "header",
    "required": False,
    "description": _KEY_SCHEMA["description"],
    "schema": _KEY_SCHEMA,
}


async def create_job(request: Request) -> Response:
    """A job that was acknowledged with 201 is never lost.

    A repeated Idempotency-Key returns the job of the first request, with `Idempotency-Replayed: true`.
    """
    services, caller = await services_of(request), await caller_of(request)
    body, key = await spec_body(request), _idempotency_key(request)
    read = read_spec_at_once(body, services)
    if read is None:
        read = await run_in_threadpool(_checked, services, body)
    spec, _ = read
    job, created = await services.store.submit_job(spec, idempotency_key=key, user=caller.user)
    headers = {"Location": f"{request.scope['path']}/{job.id}"}
    if not created:
        headers["Idempotency-Replayed"] = "true"
    return json_response(shown(job, services.results), 201, headers)


def _idempotency_key(request: Request) -> str | None:
    try:
        return _KEY.validate_python(request.headers.get(_KEY_HEADER))
    except ValidationError as error:
        wrong = [{**each, "loc": ("header", _KEY_HEADER)} for each in error.errors()]
        raise RequestValidationError(wrong) from None


def add_submission(
    router: APIRouter,
    *,
    responses: Mapping[int | str, dict[str, Any]],
    dependencies: Sequence[params.Depends],
) -> None:
    """Adds `create_job` to the application's own router: an included one looks at each path twice.

    responses: those of every route. dependencies: those that the documentation is to name.
    """
    router.add_api_route(
        "/v1/jobs",
        create_job,
        methods=["POST"],
        status_code=201,
        response_model=JobDocument,
        responses={**responses, **documented(413, 415, 422, 503)},
        openapi_extra={**_BODY, "parameters": [_KEY_PARAMETER]},
        summary="Queue a job",
        tags=["jobs"],
        dependencies=dependencies,
        route_class_override=DirectRoute,
    )


@router.post(
    "/validate",
    responses=documented(413, 415, 422, 503),
    openapi_extra=_BODY,
    summary="Check a spec without queueing it",
)
def validate_job(services: Services, body: SpecBody) -> ValidationDocument:
    """Changes nothing. A spec that `POST /v1/jobs` would refuse gets the same answer here."""
    spec, notes = _checked(services, body)
    queue, active = services.store.queue(), services.store.active()
    try:
        scheduler = services.scheduler()
        nodes = lease.machines(scheduler)
    except Unavailable as error:
        return ValidationDocument.of(spec, None, str(error), notes)
    sweeps = services.store.sweep_limits(queue)
    fits = forecast(spec, queue, active, nodes, now=scheduler.clock, sweeps=sweeps)
    expected = None
    if fits.fits_ever and not fits.fits_now:
        expected = expected_start(spec, queue, active, nodes, sweeps, services.store.succeeded())
    return ValidationDocument.of(spec, fits, fits.reason, notes, expected)


@router.get(
    "", response_model=JobPage, responses=documented(404, 422, 503), summary="List jobs, newest first"
)
def list_jobs(
    services: Services,
    state: Annotated[list[State] | None, Query(max_length=20, description="Jobs in any of these")] = None,
    id_prefix: Annotated[Text | None, Query(alias="id", description="Beginning of the id")] = None,
    name: NamePattern = None,
    experiment: Annotated[Text | None, Query(description="`tracking.experiment`")] = None,
    since: Annotated[
        AwareDatetime | None, Query(description="Created then or later; ISO 8601 with a time zone")
    ] = None,
    label: Annotated[
        list[Label] | None, Query(max_length=100, description="KEY:VALUE; jobs with all of these")
    ] = None,
    sweep: Annotated[Text | None, Query(description="Id of a sweep; its jobs")] = None,
    user: Annotated[Text | None, Query(description="User of the key that submitted")] = None,
    order: Annotated[
        Order, Query(description="`ended`: only ended jobs, the last first; `longest`: by how long they took")
    ] = Order.NEWEST,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    cursor: Annotated[str | None, Query(max_length=1_500)] = None,
) -> Response:
    """Returns one page of the jobs that match every given filter. A sweep that does not exist is a 404."""
    page = services.store.jobs_page(
        order,
        states=state or (),
        id_prefix=id_prefix,
        name=name,
        experiment=experiment,
        since=since,
        labels=label_pairs(label),
        sweep=sweep,
        user=user,
        after=cursor,
        limit=limit,
    )
    if sweep is not None and not page.items:
        services.store.get_sweep(sweep)  # a typing error, and not a sweep without such jobs
    items = [shown(job, services.results) for job in page.items]
    return json_response(JobPage(items=items, next_cursor=page.after))


@router.get("/{job_id}", response_model=JobDocument, responses=documented(404, 503), summary="Show a job")
def get_job(services: Services, job_id: str) -> Response:
    """Returns the job as it is in the database."""
    return json_response(shown(services.store.get(job_id), services.results))


@router.get(
    "/{job_id}/metrics", responses=documented(404, 503), summary="List every point of a job's metrics"
)
def get_metrics(
    services: Services,
    job_id: str,
    name: Annotated[
        list[Text] | None, Query(max_length=200, description="Only these; system metrics must be named")
    ] = None,
) -> PointPage:
    """Returns the points from the job's MLflow run, by name and step."""
    run = services.store.get(job_id).run
    points = services.results.history(run, name) if run else []
    return PointPage(items=[PointDocument.model_validate(point) for point in points])


def _checked(services: Context, body: SpecText) -> tuple[Spec, list[str]]:
    """Returns the spec of a request as it will be queued, and notes. Raises SpecError, and Unavailable."""
    spec, notes = read_spec(body, services)
    return resolved(spec, services.store, services.settings), notes


def label_pairs(labels: Iterable[str] | None) -> list[tuple[str, str]]:
    """Returns the keys and values of labels KEY:VALUE."""
    parts = (label.partition(":") for label in labels or ())
    return [(key, value) for key, _, value in parts]


def shown(job: Job, results: Results) -> JobDocument:
    """Returns the document of `job`, built from its row alone; `results` only formats the URL."""
    return JobDocument.of(job, results.url(job.run) if job.run else None)
