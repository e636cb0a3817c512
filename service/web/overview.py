"""The overview: what runs, what waits and why, what has ended lately, the machines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

from fastapi import APIRouter, Request, Response

from service.api.access import caller_or_none
from service.api.context import Context, Services
from service.errors import Unavailable
from service.jobs.job import ACTIVE, Job, State
from service.queue import lease
from service.queue.job_lists import Order
from service.queue.queue_pages import QueuedPage
from service.queue.store import Store
from service.scheduling import capacity
from service.scheduling.capacity import UNITS
from service.web import live
from service.web.page import PageRoute, fragment, link_from, render
from service.web.timeline import timeline

router = APIRouter(route_class=PageRoute, include_in_schema=False)
_LISTED = 12
_FAILED = 6
_RUNNING = 20
_PARTS = {
    "figures": "overview_figures.html",
    "running": "overview_running.html",
    "waiting": "overview_waiting.html",
    "failed": "overview_failed.html",
    "machines": "overview_machines.html",
    "users": "overview_users.html",
    "timeline": "timeline.html",
    "ended": "overview_ended.html",
}
"""The templates of the page's parts, by the ids of their elements."""


@dataclass(frozen=True, kw_only=True)
class MachineView:
    """A machine, and what of it is in use."""

    address: str
    cpus: float
    used_cpus: float
    gpus: float
    used_gpus: float
    memory: int
    used_memory: int


@dataclass(frozen=True, kw_only=True)
class UserView:
    """A user, and what of all machines the user's running jobs have. name: None: jobs without a user."""

    name: str | None
    jobs: int
    workers: int
    cpus: float
    gpus: float


@dataclass(frozen=True, kw_only=True)
class Overview:
    """What the page shows. failed: in the last day. problem: why the machines are not known; "".

    users: those with running jobs, who has most first; none if no job has a user.
    """

    counts: Mapping[State, int]
    running: Sequence[Job]
    waiting: QueuedPage
    failed: Sequence[Job]
    ended: Sequence[Job]
    machines: Sequence[MachineView]
    problem: str
    users: Sequence[UserView]

    @property
    def names(self) -> dict[str, str]:
        """The names of the jobs that run and wait, by their ids."""
        waiting = {job.id: job.name for job in self.waiting.items}
        return waiting | {job.id: job.name for job in self.running}


@router.get("/")
def overview(request: Request, services: Services) -> Response:
    """The first page."""
    return render(request, "overview.html", **_values(services))


@router.get("/live/overview")
def live_overview(request: Request, services: Services) -> Response:
    """Keeps the first page up to date."""
    parts = partial(_parts, request, services)
    return live.stream(request, ("overview", caller_or_none(request)), parts)


def _parts(request: Request, services: Context) -> list[bytes]:
    values = _values(services)
    return [
        fragment(request, "partial.html", target=name, part=template, url=partial(link_from, "/"), **values)
        for name, template in _PARTS.items()
    ]


def _values(services: Context) -> dict[str, Any]:
    return {
        "parts": _PARTS,
        "most": _RUNNING,
        "view": _view(services),
        "timeline": timeline(services.store, datetime.now(UTC)),
    }


def _view(services: Context) -> Overview:
    store = services.store
    snapshots = services.job_watcher.snapshots(store.active_ids())
    # A snapshot may be older than the ids: a job that has just been started.
    running = [snapshot.job for snapshot in snapshots if snapshot.job.state in ACTIVE]
    machines, problem = _machines(services, running)
    return Overview(
        counts=store.count_states(),
        running=running,
        waiting=store.queue_page(limit=_LISTED),
        failed=_failed(store),
        ended=store.jobs_page(Order.ENDED, limit=_LISTED).items,
        machines=machines,
        problem=problem,
        users=users(running),
    )


def _failed(store: Store) -> list[Job]:
    """Returns jobs that have failed in the last day, of those submitted last; the last failure first."""
    day_ago = datetime.now(UTC) - timedelta(days=1)
    ended = [(job.finished_at, job) for job in store.list_jobs(states=[State.FAILED], limit=_LISTED)[0]]
    recent = [(at, job) for at, job in ended if at is not None and at >= day_ago]
    return [job for _, job in sorted(recent, key=lambda each: each[0], reverse=True)[:_FAILED]]


def _machines(services: Context, running: Sequence[Job]) -> tuple[list[MachineView], str]:
    try:
        nodes = lease.machines(services.scheduler())
    except Unavailable as error:
        return [], str(error)
    found, named = [], {node.id: node for node in nodes}
    for machine in capacity.occupied(nodes, running):
        node = named[machine.id]
        used = machine.total - machine.free
        found.append(
            MachineView(
                address=node.address,
                cpus=node.cpus,
                used_cpus=used.cpus / UNITS,
                gpus=node.gpus,
                used_gpus=used.gpus / UNITS,
                memory=node.memory,
                used_memory=used.memory,
            )
        )
    return found, ""


def users(running: Sequence[Job]) -> list[UserView]:
    """Returns the users of these jobs: who has most GPUs first, then most CPUs; none if no job has a user."""
    by_name: dict[str | None, list[Job]] = {}
    for job in running:
        by_name.setdefault(job.user, []).append(job)
    found = [_user(name, jobs) for name, jobs in by_name.items()]
    found.sort(key=lambda user: (-user.gpus, -user.cpus, user.name or ""))
    return found if any(user.name for user in found) else []


def _user(name: str | None, jobs: Sequence[Job]) -> UserView:
    held = [(job.workers or 0, job.resources) for job in jobs]
    return UserView(
        name=name,
        jobs=len(jobs),
        workers=sum(workers for workers, _ in held),
        cpus=sum(workers * resources.cpus_per_worker for workers, resources in held),
        gpus=sum(workers * resources.gpus_per_worker for workers, resources in held),
    )
