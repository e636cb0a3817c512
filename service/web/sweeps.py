"""Sweeps: the list of them, and the page of one with its points."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from service import differences
from service.api.access import caller_or_none
from service.api.context import Context, Services
from service.api.looks import jobs_topic
from service.api.sweep_schemas import SweepDocument, SweepPointDocument, SweepSummary
from service.jobs.job import ACTIVE, ENDED, Job, State
from service.jobs.sweep import Sweep
from service.web import live
from service.web.page import PageRoute, fragment, link_from, render, render_long
from training.metric_names import main_metric

router = APIRouter(route_class=PageRoute, include_in_schema=False)
_ON_PAGE = 20
_SENT_ENDS = 50
"""How many of the points that ended last are sent with each change; the page asks anew if it lacks others."""
Name = Annotated[str, Query(max_length=500, pattern=r"^[^\x00]*$")]
Cursor = Annotated[str | None, Query(max_length=100)]


@dataclass(frozen=True, kw_only=True)
class Best:
    """The best value of a metric among the points, and which has it."""

    metric: str
    value: float
    point: SweepPointDocument


@dataclass(frozen=True, kw_only=True)
class SweepView:
    """What the page of a sweep shows.

    keys: the swept keys, each with its short name. metrics: the names of the points' metrics, each with which
    of its values is the best ("min", "max", "" if not known), the main one first.
    """

    document: SweepDocument
    points: Sequence[SweepPointDocument]
    keys: dict[str, str]
    metrics: Mapping[str, str]
    best: Best | None

    @property
    def ended(self) -> int:
        return _ended(self.document)


@router.get("/sweeps")
def list_sweeps(request: Request, services: Services, name: Name = "", cursor: Cursor = None) -> Response:
    """Lists sweeps, newest first."""
    return render(request, "sweeps.html", **_list(services, name.strip(), cursor))


@router.get("/live/sweeps")
def live_sweeps(request: Request, services: Services, name: Name = "", cursor: Cursor = None) -> Response:
    """Keeps a page of the list up to date."""
    parts = partial(_list_parts, request, services, name.strip(), cursor)
    view = ("sweeps", name.strip(), cursor, caller_or_none(request))
    return live.stream(request, view, parts, jobs_topic([], and_others=True))


@router.get("/sweeps/{sweep_id}")
def show_sweep(request: Request, services: Services, sweep_id: str) -> Response:
    """Shows a sweep and all its points."""
    sweep = services.store.get_sweep(sweep_id)
    jobs = services.store.jobs_of_sweep(sweep.id)
    values = [differences.values_of(job.spec) for job in services.store.several([job.id for job in jobs[:1]])]
    document = SweepDocument.with_jobs(sweep, jobs, _url(services, sweep))
    return render_long(request, "sweep.html", view=_view(document, values[0] if values else {}))


@router.get("/live/sweeps/{sweep_id}")
def live_sweep(request: Request, services: Services, sweep_id: str) -> Response:
    """Keeps the page of a sweep up to date: its summary, and those of its points that may have changed."""
    sweep = services.store.get_sweep(sweep_id)
    ids = [job.id for job in services.store.jobs_of_sweep(sweep.id)]
    parts = partial(_parts, request, services, sweep.id, ids)
    view = ("sweep", sweep.id, caller_or_none(request))
    return live.stream(request, view, parts, jobs_topic(ids, and_others=True))


def _list(services: Context, name: str, cursor: str | None) -> dict[str, Any]:
    found, next_cursor = services.store.list_sweeps(name=name or None, cursor=cursor, limit=_ON_PAGE)
    states = services.store.states_of_sweeps([sweep.id for sweep in found])
    sweeps = [SweepSummary.of(sweep, states[sweep.id], None) for sweep in found]
    return {
        "sweeps": [(sweep, _ended(sweep), differences.short_keys(sweep.keys)) for sweep in sweeps],
        "next_cursor": next_cursor,
        "name": name,
        "is_first": cursor is None,
    }


def _list_parts(request: Request, services: Context, name: str, cursor: str | None) -> list[bytes]:
    part = partial(fragment, request, "partial.html", url=partial(link_from, "/sweeps"))
    return [part(target="sweeps", part="sweeps_body.html", **_list(services, name, cursor))]


def _parts(request: Request, services: Context, sweep_id: str, ids: Sequence[str]) -> list[bytes]:
    sweep = services.store.get_sweep(sweep_id)
    snapshots = {each.job.id: each for each in services.job_watcher.snapshots(ids)}

    def point(job: Job, values: Mapping[str, Any]) -> SweepPointDocument:
        return snapshots[job.id].once("point", lambda: SweepPointDocument.of(job, values))

    jobs = [each.job for each in snapshots.values()]
    document = SweepDocument.with_jobs(sweep, jobs, _url(services, sweep), point)
    view = _view(document, differences.values_of(jobs[0].spec) if jobs else {})
    part = partial(
        fragment, request, "partial.html", view=view, url=partial(link_from, f"/sweeps/{sweep_id}")
    )

    def row(point: SweepPointDocument) -> bytes:
        target = f"point-{point.number}"
        return snapshots[point.job].once(
            ("row of a sweep", tuple(view.metrics.items())),
            lambda: part(target=target, part="sweep_point.html", point=point),
        )

    ended = [job for job in jobs if job.finished_at is not None]
    ended.sort(key=lambda job: job.finished_at or job.created_at, reverse=True)
    sent = {job.id for job in jobs if job.state in ACTIVE} | {job.id for job in ended[:_SENT_ENDS]}
    return [
        part(target="sweep", part="sweep_summary.html"),
        *(row(each) for each in view.points if each.job in sent),
    ]


def _url(services: Context, sweep: Sweep) -> str | None:
    return services.results.url(sweep.run) if sweep.run else None


def _view(document: SweepDocument, values: dict[str, Any]) -> SweepView:
    """Returns what the page shows. values: of the spec of one of its jobs, by dotted key."""
    metrics = {name: differences.mode_of(values, name) or "" for name in _metrics(document.points, values)}
    return SweepView(
        document=document,
        points=document.points,
        keys=differences.short_keys(document.keys),
        metrics=metrics,
        best=_best(document.points, metrics),
    )


def _metrics(points: Sequence[SweepPointDocument], values: dict[str, Any]) -> list[str]:
    """Returns the names of all metrics of the points: that which chooses the best checkpoint first."""
    names = dict.fromkeys(name for point in points for name in point.metrics)
    main = main_metric(names, values.get("training.checkpoint.monitor"))
    return list(dict.fromkeys(([main] if main else []) + sorted(names)))


def _best(points: Sequence[SweepPointDocument], metrics: Mapping[str, str]) -> Best | None:
    """Returns the best value of the first metric of which the best is known; failed jobs have no result."""
    for metric, mode in metrics.items():
        found = [
            Best(metric=metric, value=value, point=point)
            for point in points
            if point.state not in {State.FAILED, State.CANCELLED}
            and (value := point.metrics.get(metric)) is not None
        ]
        if mode and found:
            return (min if mode == "min" else max)(found, key=lambda each: each.value)
    return None


def _ended(sweep: SweepSummary) -> int:
    return sum(number for state, number in sweep.counts.items() if state == "deleted" or state in ENDED)
