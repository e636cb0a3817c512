"""Jobs beside one another: their curves, the parameters that differ, and their metrics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Annotated, Any, NamedTuple
from urllib.parse import urlencode

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import RedirectResponse

from service import differences
from service.api.access import caller_or_none
from service.api.context import Context, Services
from service.api.job_watcher import JobSnapshot
from service.api.schemas import shown_metrics
from service.differences import Spread
from service.jobs.job import Job, is_id
from service.queue.store import Store
from service.web import live_points, shown
from service.web.page import PageRoute, fragment, link, link_from, render
from training.metric_names import Mode, main_metric

router = APIRouter(route_class=PageRoute, include_in_schema=False)
MOST = 20
Jobs = Annotated[list[str] | None, Query(max_length=200)]
Reference = Annotated[str, Query(max_length=500)]


class Cell(NamedTuple):
    """A value of a metric in words. is_best: it is the best of several; of equal ones the first."""

    text: str
    is_best: bool


@dataclass(frozen=True, kw_only=True)
class ComparedGroup:
    """Jobs that differ in their seed at most; or a single job. number: from 1."""

    number: int
    jobs: Sequence[Job]
    values: Sequence[Mapping[str, Any]]

    def texts(self, key: str) -> list[str]:
        """Returns the different values of a key of the spec; – of a job that has none."""
        found = [shown.spec_value(values[key]) if key in values else "–" for values in self.values]
        return list(dict.fromkeys(found))

    def metrics(self) -> dict[str, Spread]:
        """Returns the latest value of each metric that a job has."""
        found: dict[str, list[float | None]] = {}
        for job in self.jobs:
            for metric, value in shown_metrics(job.progress.metrics if job.progress else {}).items():
                found.setdefault(metric, []).append(value)
        return {metric: Spread.of(values) for metric, values in found.items()}


@dataclass(frozen=True, kw_only=True)
class CompareView:
    """What the page shows.

    differing: the dotted keys of the spec whose values are not the same in all jobs. labels: what
    distinguishes each group: the values of parameters that differ, or its jobs' names. without: by a job's
    id the query of the page that compares the others.
    """

    groups: Sequence[ComparedGroup]
    differing: Sequence[str]
    labels: Sequence[str]
    without: Mapping[str, str]

    @property
    def jobs(self) -> list[Job]:
        return [job for group in self.groups for job in group.jobs]

    @cached_property
    def metrics(self) -> dict[str, list[Cell]]:
        """The latest value of each metric in each group; the main metric first."""
        groups = [group.metrics() for group in self.groups]
        names = sorted({name for metrics in groups for name in metrics})
        values = self.groups[0].values[0]
        main = main_metric(names, values.get("training.checkpoint.monitor"))
        return {
            name: _cells([metrics.get(name) for metrics in groups], differences.mode_of(values, name))
            for name in dict.fromkeys(([main] if main else []) + names)
        }

    @cached_property
    def weights(self) -> dict[str, str]:
        """By a job's id whether its weights are those of the first job that has any: see `weights_of`."""
        found = differences.weights_of([job.weights_sha256 for job in self.jobs])
        return {job.id: text for job, text in zip(self.jobs, found, strict=True)}

    def label(self, group: ComparedGroup) -> str:
        return self.labels[group.number - 1]

    def at_another_moment(self, jobs: Iterable[Job]) -> CompareView:
        """Returns the view of the same jobs: what it says of their specs, which never change, stays."""
        now = {job.id: job for job in jobs}
        groups = [
            ComparedGroup(number=group.number, jobs=[now[job.id] for job in group.jobs], values=group.values)
            for group in self.groups
        ]
        return replace(self, groups=groups)


@router.get("/compare")
def compare(
    request: Request, services: Services, job: Jobs = None, add: Reference = "", apart: bool = False
) -> Response:
    """Compares the jobs. add: an id, a unique beginning of one, or a name, to be compared as well.

    apart: show each job for itself, also those that differ in their seed alone.
    """
    ids, problem = list(dict.fromkeys(job or [])), ""
    if add := add.strip():
        found, problem = _named(services.store, add, MOST - len(ids))
        if not problem:
            kept = [("job", each) for each in dict.fromkeys([*ids, *found])]
            query = urlencode([*kept, *([("apart", "true")] if apart else [])])
            return RedirectResponse(f"{link(request, '/compare')}?{query}", 303)
    jobs, notes = _found(services.store, ids)
    return render(
        request,
        "compare.html",
        view=_view(jobs, apart=apart),
        notes=notes,
        add=add,
        problem=problem,
        apart=apart,
        most=MOST,
        metric=request.query_params.get("metric", ""),
        query_of=partial(_query_of, apart=apart),
    )


@router.get("/live/compare")
def live_compare(request: Request, services: Services, job: Jobs = None, apart: bool = False) -> Response:
    """Keeps the states and metrics of the jobs up to date."""
    ids = [each for each in dict.fromkeys(job or []) if is_id(each)][:MOST]
    parts = _Parts(request, services, ids, apart=apart)
    return live_points.stream(request, services, ("compare", apart, caller_or_none(request)), parts, ids)


class _Parts:
    """Renders the jobs and their metrics: what does not change with each step only when it is another one.

    Groups the jobs again only when there are others. The progress of a job is made once for all pages.
    """

    def __init__(self, request: Request, services: Context, ids: Sequence[str], *, apart: bool) -> None:
        self._request, self._services, self._ids, self._apart = request, services, ids, apart
        self._part = partial(fragment, request, "partial.html", url=partial(link_from, "/compare"))
        self._view = _view([], apart=apart)
        self._table: tuple[list[Hashable], bytes] = ([], b"")
        self._revisions: list[int] = []
        self._rendered: list[bytes] = []

    def __call__(self) -> list[bytes]:
        snapshots = self._services.job_watcher.snapshots(self._ids)
        if (now := [each.revision for each in snapshots]) != self._revisions:
            self._rendered, self._revisions = self._render(snapshots), now
        return self._rendered

    def _render(self, snapshots: Sequence[JobSnapshot]) -> list[bytes]:
        jobs = [each.job for each in snapshots]
        is_same = {job.id for job in jobs} == {job.id for job in self._view.jobs}
        view = self._view.at_another_moment(jobs) if is_same else _view(jobs, apart=self._apart)
        self._view = view
        if not jobs:
            return []
        if (now := [_without_progress(job) for job in jobs]) != self._table[0]:
            self._table = now, self._part(target="compare-jobs", part="compare_jobs.html", view=view)
        metrics = self._part(target="compare-metrics", part="compare_metrics.html", view=view)
        # The table may have an older progress.
        return [self._table[1], *map(self._progress, snapshots), metrics]

    def _progress(self, snapshot: JobSnapshot) -> bytes:
        job = snapshot.job
        target = f"progress-{job.id}"
        return snapshot.once(
            "compared progress",
            lambda: self._part(target=target, part="compare_progress.html", job=job),
        )


def _without_progress(job: Job) -> Hashable:
    """Returns what else the table shows of a job."""
    return job.id, job.name, job.state, job.attempt, job.started_at, job.weights_sha256


def _found(store: Store, ids: Sequence[str]) -> tuple[list[Job], list[str]]:
    """Returns the jobs in this order, and sentences about those that are left out."""
    known = {job.id: job for job in store.several([each for each in ids[:MOST] if is_id(each)])}
    notes = [f"There is no job {each}." for each in ids[:MOST] if each not in known]
    if len(ids) > MOST:
        notes.append(f"Only the first {MOST} of {len(ids)} jobs are compared.")
    return [known[each] for each in ids if each in known], notes


def _named(store: Store, reference: str, most: int) -> tuple[list[str], str]:
    """Returns the ids of the jobs that a reference names, the oldest first, and what is wrong with it; ""."""
    if most < 1:
        return [], f"{MOST} jobs are compared already; remove one first"
    if "\x00" in reference:
        return [], "a name has no NUL in it"
    if found := store.list_jobs(name=reference, limit=most)[0]:
        return [job.id for job in reversed(found)], ""
    found = store.list_jobs(id_prefix=reference, limit=2)[0]
    if len(found) > 1:
        return [], f"more than one id begins with {reference!r}, as {found[0].id}; write more of it"
    if not found:
        return [], f"there is no job with the id or name {reference!r}"
    return [found[0].id], ""


def _cells(values: Sequence[Spread | None], mode: Mode | None) -> list[Cell]:
    """Returns the cells of a metric. mode: which of its values are better; None if that is not known."""
    means = [value.mean for value in values if value and value.mean is not None]
    best = None if mode is None or len(means) < 2 else (min if mode == "min" else max)(means)
    first = next((at for at, value in enumerate(values) if value and value.mean == best), None)
    return [Cell(_text(value), best is not None and at == first) for at, value in enumerate(values)]


def _text(value: Spread | None) -> str:
    """
    >>> _text(Spread(0.9, 0.1, 3)), _text(Spread(0.5, None, 1)), _text(Spread(None, None, 2)), _text(None)
    ('0.9 ± 0.1 (3)', '0.5', 'nan', '')
    """
    if value is None:
        return ""
    mean = "nan" if value.mean is None else shown.number(value.mean)
    return mean if value.deviation is None else f"{mean} ± {shown.number(value.deviation)} ({value.jobs})"


def _view(jobs: Sequence[Job], *, apart: bool) -> CompareView:
    found: dict[str, list[tuple[Job, dict[str, Any]]]] = {}
    for job in jobs:
        values = differences.values_of(job.spec)
        found.setdefault(job.id if apart else differences.training_of(values), []).append((job, values))
    groups = [
        ComparedGroup(number=number, jobs=[job for job, _ in group], values=[values for _, values in group])
        for number, group in enumerate(found.values(), 1)
    ]
    sections = list(dict.fromkeys(section for job in jobs for section in job.spec))
    differing = differences.differing([values for group in groups for values in group.values], sections)
    names = Counter(name for group in groups for name in {job.name for job in group.jobs})
    labels = [_label(group, differing, names) for group in groups]
    grouped = [job for group in groups for job in group.jobs]
    without = {job.id: _query_of(grouped, apart=apart, without=job.id) for job in grouped}
    return CompareView(groups=groups, differing=differing, labels=labels, without=without)


def _label(group: ComparedGroup, differing: Iterable[str], groups_with: Mapping[str, int]) -> str:
    """Returns what distinguishes a group. groups_with: how many groups have a job with this name."""
    keys = [key for key in differing if len(group.texts(key)) == 1]
    short = differences.short_keys(keys)
    text = ", ".join(f"{short[key]}={group.texts(key)[0]}" for key in keys if key != differences.SEED)
    names = list(dict.fromkeys(job.name for job in group.jobs))
    return text if text and len(names) == 1 and groups_with[names[0]] > 1 else ", ".join(names)


def _query_of(jobs: Iterable[Job], *, apart: bool, without: str = "") -> str:
    """Returns the query of the page that compares the jobs but for one."""
    pairs = [("job", job.id) for job in jobs if job.id != without]
    return "?" + urlencode([*pairs, *([("apart", "true")] if apart else [])])
