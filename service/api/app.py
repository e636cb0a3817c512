"""The FastAPI application, assembled from its routes."""

from __future__ import annotations

import threading
from importlib import metadata
from typing import Any

from fastapi import Depends, FastAPI
from fastapi.openapi.utils import get_openapi
from starlette.types import ASGIApp

from service.api import (
    checkpoints,
    cluster,
    code,
    control,
    events,
    files,
    health,
    jobs,
    logs,
    metrics,
    problems,
    secrets,
    sweeps,
    version,
)
from service.api.access import BrowserGuard, require_key
from service.api.context import Context
from service.api.job_watcher import JobWatcher
from service.api.jobs import shown
from service.api.request_scope import RequestScope
from service.api.sweep_schemas import SweepRequest
from service.backends.tracking import Results
from service.metrics.registry import Metrics
from service.queue.store import Store
from service.settings import Settings
from training.spec import Spec

_REFERENCE = "#/components/schemas/{model}"


class _Api(FastAPI):
    def build_middleware_stack(self) -> ASGIApp:
        """Returns the whole application within `RequestScope`, so that it sees error responses too."""
        return RequestScope(super().build_middleware_stack(), self.state.metrics.requests)


def create_app(
    settings: Settings, store: Store, results: Results, *, stopping: threading.Event | None = None
) -> FastAPI:
    """Returns the REST API. Calls neither `store` nor `results` before the first request.

    stopping: ends streams when it is set. A server waits for their end, and then breaks them with an error.
    """
    job_watcher = JobWatcher(store, lambda job: shown(job, results).model_dump_json())
    app = _Api(
        title="syncbn",
        summary="Trains networks with batch normalisation, with the same result on any number of devices.",
        version=metadata.version("syncbn"),
        redirect_slashes=False,
    )
    app.state.context = Context(
        settings=settings,
        store=store,
        results=results,
        job_watcher=job_watcher,
        stopping=stopping or threading.Event(),
    )
    app.state.metrics = Metrics(store, results, settings.storage)
    app.add_middleware(BrowserGuard, loopback_only=settings.api_key is None)
    problems.install(app)
    everywhere = problems.documented(401, 403, 422)
    for routes in (
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
        metrics,
        version,
    ):
        app.include_router(routes.router, dependencies=[Depends(require_key)], responses=everywhere)
    app.include_router(health.router)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    return app


def _openapi(app: FastAPI) -> dict[str, Any]:
    """Returns FastAPI's OpenAPI document plus the schemas that no route declares."""
    if not app.openapi_schema:
        schema = get_openapi(title=app.title, version=app.version, summary=app.summary, routes=app.routes)
        schemas = schema.setdefault("components", {}).setdefault("schemas", {})
        for model in (Spec, SweepRequest, problems.ProblemDocument):
            own = model.model_json_schema(ref_template=_REFERENCE)
            schemas |= own.pop("$defs", {}) | {model.__name__: own}
        app.openapi_schema = schema
    return app.openapi_schema
