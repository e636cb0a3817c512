"""The list of jobs."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from service.api.context import Services
from service.jobs.job import State
from service.web.page import PageRoute, render

router = APIRouter(route_class=PageRoute, include_in_schema=False)


@router.get("/jobs")
def list_jobs(request: Request, services: Services) -> Response:
    """Lists jobs, newest first."""
    found, cursor = services.store.list_jobs(limit=50)
    return render(request, "jobs.html", jobs=found, next_cursor=cursor, states=list(State))
