"""The FastAPI application, assembled from its routes."""

from __future__ import annotations

import threading
from importlib.metadata import version
from typing import Any

from fastapi import Depends, FastAPI
from fastapi.openapi.utils import get_openapi

from service.api import (
    checkpoints,
    cleanup,
    cluster,
    code,
    control,
    events,
    files,
    health,
    jobs,
    logs,
    problems,
    secrets,
    sweeps,
    webhooks,
)
from service.api.access import BrowserGuard, require_key
from service.api.body_limit import BodyLimit
from service.api.context import Context
from service.api.head import HeadAsGet
from service.api.job_watcher import JobWatcher
from service.api.jobs import shown
from service.api.looks import Looks
from service.api.notifier import Notifier
from service.api.schemas import ResizeRequest
from service.api.sse import Streams
from service.api.sweep_schemas import SweepRequest
from service.backends.tracking import Results
from service.job_logs import JobLogs
from service.queue.store import Store
from service.settings import Settings
from training.spec import Spec

_REFERENCE = "#/components/schemas/{model}"


def create_app(
    settings: Settings, store: Store, results: Results, *, stopping: threading.Event | None = None
) -> FastAPI:
    """Returns the REST API. Calls neither `store` nor `results` before the first request.

    stopping: ends streams when it is set. A server waits for their end, and then breaks them with an error.
    """
    job_watcher = JobWatcher(store, lambda job: shown(job, results).model_dump_json())
    app = FastAPI(
        title="syncbn",
        summary="Trains networks with batch normalisation, with the same result on any number of devices.",
        version=version("syncbn"),
        redirect_slashes=False,
    )
    stopping, horizon = stopping or threading.Event(), store.event_horizon()
    looks = Looks(job_watcher, JobLogs(settings.storage, results), horizon)
    app.state.context = Context(
        settings=settings,
        store=store,
        results=results,
        job_watcher=job_watcher,
        event_horizon=horizon,
        streams=Streams(Notifier(looks, stopping).subscribe, stopping),
        stopping=stopping,
    )
    app.add_middleware(BodyLimit)
    app.add_middleware(HeadAsGet)
    app.add_middleware(BrowserGuard, loopback_only=settings.api_key is None)
    problems.install(app)
    everywhere = problems.documented(401, 403, 422)
    routers = (
        jobs,
        control,
        logs,
        events,
        checkpoints,
        files,
        sweeps,
        code,
        secrets,
        cluster,
        cleanup,
        webhooks,
    )
    for routes in routers:
        app.include_router(routes.router, dependencies=[Depends(require_key)], responses=everywhere)
    app.include_router(health.router)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    return app


def _openapi(app: FastAPI) -> dict[str, Any]:
    """Returns FastAPI's OpenAPI document plus the schemas that no route declares."""
    if not app.openapi_schema:
        schema = get_openapi(title=app.title, version=app.version, summary=app.summary, routes=app.routes)
        schemas = schema.setdefault("components", {}).setdefault("schemas", {})
        for model in (Spec, SweepRequest, ResizeRequest, problems.ProblemDocument):
            own = model.model_json_schema(ref_template=_REFERENCE)
            schemas |= own.pop("$defs", {}) | {model.__name__: own}
        app.openapi_schema = schema
    return app.openapi_schema
