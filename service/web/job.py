"""The page of one job: a header that is live, and tabs."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request, Response

from service.api.access import caller_or_none
from service.api.context import Context, Services
from service.api.looks import job_topic
from service.api.schemas import shown_metrics, shown_wait
from service.errors import NotFound
from service.jobs.job import Job, State, utc_now
from service.queue.stored_events import JobEvent
from service.web import (
    job_actions,
    job_attempts,
    job_curves,
    job_files,
    job_logs,
    job_normalisation,
    job_spec,
    job_system,
    live,
    live_points,
)
from service.web.page import PageRoute, fragment, render
from service.web.shown import by_ids

router = APIRouter(route_class=PageRoute, include_in_schema=False)
_FIRST_EVENTS = 20


@dataclass(frozen=True, kw_only=True)
class Tab:
    """A tab of the page. values: returns what its template `job_NAME.html` shows; may raise Unavailable."""

    title: str
    values: Callable[[Request, Context, Job], Mapping[str, Any]]


CURVES = "curves"
TABS: Mapping[str, Tab] = {
    CURVES: Tab(title="Curves", values=job_curves.values),
    "logs": Tab(title="Logs", values=job_logs.values),
    "attempts": Tab(title="Attempts", values=job_attempts.values),
    "files": Tab(title="Files", values=job_files.values),
    "spec": Tab(title="Spec", values=job_spec.values),
    "normalisation": Tab(title="Normalisation", values=job_normalisation.values),
    "system": Tab(title="System", values=job_system.values),
}
"""By the last part of the path; CURVES is what the path without it shows."""


@router.get("/jobs/{job_id}")
def show_job(request: Request, services: Services, job_id: str) -> Response:
    """Shows a job and its curves."""
    return _page(request, services, job_id, CURVES, f"/live/job-{job_id}")


@router.get("/jobs/{job_id}/{tab}")
def show_tab(request: Request, services: Services, job_id: str, tab: str) -> Response:
    """Shows a job and one of its other tabs."""
    if tab not in TABS or tab == CURVES:
        raise NotFound(f"the page of a job has no tab {tab!r}; it has {', '.join(TABS)}")
    return _page(request, services, job_id, tab, f"/live/job-{job_id}/tab")


# Links in the header are relative, so a stream's path is as deep as that of its page.
@router.get("/live/job-{job_id}")
def live_curves(request: Request, services: Services, job_id: str) -> Response:
    """Keeps the header up to date, and brings the points of the curves."""
    view, header = _live(request, services, job_id)
    return live_points.stream(request, services, view, header, [job_id])


@router.get("/live/job-{job_id}/tab")
def live_header(request: Request, services: Services, job_id: str) -> Response:
    """Keeps the header up to date."""
    view, header = _live(request, services, job_id)
    return live.stream(request, view, header, job_topic(job_id))


def _live(request: Request, services: Context, job_id: str) -> tuple[Hashable, Callable[[], list[bytes]]]:
    services.job_watcher.snapshot(job_id)  # raises NotFound before the stream begins
    return ("job", job_id, caller_or_none(request)), _LiveHeader(request, services, job_id)


def _page(request: Request, services: Context, job_id: str, name: str, stream: str) -> Response:
    job, tab = services.store.get(job_id), TABS[name]
    services.job_watcher.snapshot(job_id)  # then the page's stream knows the job, also if it is deleted now
    links = {each.title: f"/jobs/{job_id}" + f"/{key}" * (key != CURVES) for key, each in TABS.items()}
    return render(
        request,
        f"job_{name}.html",
        **(
            _header(request, services, job, _start_up(services, job))
            | dict(tab.values(request, services, job))
        ),
        tabs=links,
        tab=tab.title,
        stream=stream,
    )


class _LiveHeader:
    """Renders the header of a job; reads its events only when they may tell of another start-up."""

    def __init__(self, request: Request, services: Context, job_id: str) -> None:
        self._request, self._services, self._job_id = request, services, job_id
        self._read: Hashable = None
        self._start_up: float | None = None

    def __call__(self) -> list[bytes]:
        snapshot = self._services.job_watcher.snapshot(self._job_id)
        if (now := (snapshot.last_event, snapshot.job.started_at)) != self._read:
            self._start_up, self._read = _start_up(self._services, snapshot.job), now
        path, caller = self._request.scope["path"], caller_or_none(self._request)
        return [snapshot.once(("header", path, caller, self._start_up), lambda: self._rendered(snapshot.job))]

    def _rendered(self, job: Job) -> bytes:
        header = _header(self._request, self._services, job, self._start_up)
        return fragment(self._request, "job_live.html", **header)


def _header(request: Request, services: Context, job: Job, start_up: float | None) -> dict[str, Any]:
    """Returns what the header shows; its parts may use these names, too."""
    begun = job.started_at
    return {
        "job": job,
        "names": _names(services, job),
        "actions": job_actions.actions_of(job, caller_or_none(request)),
        "metrics": shown_metrics(job.progress.metrics) if job.progress else {},
        "mlflow": services.results.url(job.run) if job.run else "",
        "waits_until": shown_wait(job),
        "ran": ((job.finished_at or utc_now()) - begun).total_seconds() if begun else None,
        "start_up": start_up,
    }


def _names(services: Context, job: Job) -> dict[str, str]:
    """Returns the names of the jobs on which this one's start depends, by their ids."""
    ids = [job_id for _, job_id in by_ids(job.expected.because if job.expected else "") if job_id]
    return {each.id: each.name for each in services.store.several(ids)} if ids else {}


def _start_up(services: Context, job: Job) -> float | None:
    """Returns the seconds between the first placement on machines and the first start of training."""
    if job.started_at is None:
        return None
    starting: JobEvent | None = None
    for event in services.store.events_of_job(job.id, after=0, limit=_FIRST_EVENTS):
        if event.state is State.STARTING and event.type == "state":
            starting = event
        elif event.state is State.RUNNING and starting:
            return (event.at - starting.at).total_seconds()
    return None
