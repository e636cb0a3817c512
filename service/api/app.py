"""The FastAPI application, assembled from its routes."""

from __future__ import annotations

import secrets
import threading
from importlib import metadata
from typing import Any

from fastapi import Depends, FastAPI
from fastapi.openapi.utils import get_openapi
from starlette.types import ASGIApp

from service.api import (
    audit,
    checkpoints,
    cleanup,
    cluster,
    code,
    control,
    documentation,
    events,
    files,
    health,
    jobs,
    keys,
    logs,
    metrics,
    problems,
    sweeps,
    version,
    webhooks,
)
from service.api import secrets as job_secrets
from service.api.access import Access, check_owner, documented_scheme
from service.api.access_schemas import KeyRequest
from service.api.body_limit import BodyLimit
from service.api.browser_guard import BrowserGuard
from service.api.context import Context
from service.api.credentials import Credentials
from service.api.examples import add_examples
from service.api.head import HeadAsGet
from service.api.job_watcher import JobWatcher
from service.api.jobs import shown
from service.api.lately import Lately
from service.api.looks import Looks
from service.api.notifier import Notifier
from service.api.query import check_parameters
from service.api.request_scope import RequestScope
from service.api.schemas import PriorityRequest, ResizeRequest, RetryRequest
from service.api.single_headers import SingleHeaders
from service.api.sse import Streams
from service.api.sweep_schemas import SweepRequest
from service.api.webhook_schemas import WebhookRequest
from service.backends.tracking import Results
from service.job_logs import JobLogs
from service.job_points import JobPoints
from service.metrics.registry import Metrics
from service.queue.store import Store
from service.settings import Settings
from training.spec import Spec

_REFERENCE = "#/components/schemas/{model}"
_BODIES = (Spec, SweepRequest, ResizeRequest, RetryRequest, PriorityRequest, KeyRequest, WebhookRequest)
_MODELS = (*_BODIES, problems.ProblemDocument)


class _Api(FastAPI):
    def build_middleware_stack(self) -> ASGIApp:
        """Returns the whole application within `RequestScope`, so that it sees error responses too."""
        return RequestScope(super().build_middleware_stack(), self.state.metrics.requests)


def create_app(
    settings: Settings,
    store: Store,
    results: Results,
    *,
    stopping: threading.Event | None = None,
    local_token: str | None = None,
    token_file: str = "",
) -> FastAPI:
    """Returns the REST API. Calls neither `store` nor `results` before the first request.

    stopping: ends streams when it is set. A server waits for their end, and then breaks them with an error.
    local_token: what opens an API whose settings have no key; by default a new one. token_file: where who
    started it finds it; a refusal names it.
    """
    job_watcher = JobWatcher(store, lambda job: shown(job, results).model_dump_json())
    app = _Api(
        title="syncbn",
        summary="Trains networks with batch normalisation, with the same result on any number of devices.",
        version=metadata.version("syncbn"),
        redirect_slashes=False,
        telemetry={
            "tracing": False,
            "metrics": False,
            "logs": False,
        },  # else it is looked for at each request
        docs_url=None,
        redoc_url=None,
    )
    stopping, horizon = stopping or threading.Event(), store.event_horizon()
    job_logs, job_points, lately = JobLogs(settings.storage, results), JobPoints(settings.storage), Lately()
    looks = Looks(store, job_watcher, job_logs, job_points, horizon, lately)
    context = Context(
        settings=settings,
        store=store,
        results=results,
        job_watcher=job_watcher,
        event_horizon=horizon,
        lately=lately,
        streams=Streams(Notifier(looks, stopping).subscribe, stopping),
        stopping=stopping,
        local_token=None if settings.api_key else local_token or secrets.token_urlsafe(32),
        token_file=token_file,
    )
    app.state.context = context
    app.state.documentation = documentation.plain_page
    app.state.metrics = Metrics(store, results, settings)
    app.add_middleware(BodyLimit)
    credentials = app.state.credentials = Credentials(context)
    app.add_middleware(Access, context=context, credentials=credentials, routes=app.routes)
    app.add_middleware(SingleHeaders)
    app.add_middleware(HeadAsGet)
    app.add_middleware(BrowserGuard, loopback_only=settings.api_key is None)
    problems.install(app)
    everywhere = problems.documented(400, 401, 403, 422, 429)
    closed = [Depends(documented_scheme), Depends(check_parameters), Depends(check_owner)]
    of_jobs = (jobs, control, logs, events, checkpoints, files, sweeps)
    of_service = (code, job_secrets, cluster, cleanup, webhooks, keys, audit, metrics, version)
    jobs.add_submission(app.router, dependencies=closed, responses=everywhere)
    for routes in (*of_jobs, *of_service):
        app.include_router(routes.router, dependencies=closed, responses=everywhere)
    app.include_router(documentation.router)
    app.include_router(health.router, responses=problems.documented(400))
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    return app


def _openapi(app: FastAPI) -> dict[str, Any]:
    """Returns FastAPI's OpenAPI document plus the schemas and examples that no route declares."""
    if not app.openapi_schema:
        schema = get_openapi(title=app.title, version=app.version, summary=app.summary, routes=app.routes)
        schemas = schema.setdefault("components", {}).setdefault("schemas", {})
        for model in _MODELS:
            own = model.model_json_schema(ref_template=_REFERENCE)
            schemas |= own.pop("$defs", {}) | {model.__name__: own}
        add_examples(schema)
        app.openapi_schema = schema
    return app.openapi_schema
