"""The timeline of the overview: what held workers when, and how it ended. Pure but for `timeline`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import pairwise

from service.jobs.job import ACTIVE, Job, State
from service.queue.store import Store
from service.queue.stored_events import JobEvent
from service.web.shown import duration, plural

_MINUTE, _HOUR = timedelta(minutes=1), timedelta(hours=1)
SPANS = (
    (_HOUR, 10 * _MINUTE, "the last hour"),
    (4 * _HOUR, 30 * _MINUTE, "the last 4 hours"),
    (12 * _HOUR, 2 * _HOUR, "the last 12 hours"),
    (24 * _HOUR, 4 * _HOUR, "the last day"),
)
"""How much is shown, the distance of the times that are named, its name: the first that has all there is."""

_LAST_LABEL = 97.0
"""Percent of the span; a time beyond would be cut."""

LANES = 30
_EVENTS = 3_000
_STRIPES = 8
"""A bar has a stripe for each worker, and this many at most."""

_LOST = {State.QUEUED, State.FAILED}


@dataclass(frozen=True, kw_only=True)
class Bar:
    """A time in one state with one number of workers. left, width: in percent of the whole span.

    kind: waiting, running, stopping or paused. stripes: top and height of each worker's part, in percent.
    """

    kind: str
    left: float
    width: float
    text: str
    stripes: Sequence[tuple[float, float]] = ((0.0, 100.0),)


@dataclass(frozen=True, kw_only=True)
class Mark:
    """A moment: failed, restarted or resized. left: in percent."""

    kind: str
    left: float
    text: str


@dataclass(frozen=True, kw_only=True)
class Lane:
    """A job's line. text: all of it in words, for who does not see the picture."""

    job_id: str
    name: str
    bars: Sequence[Bar]
    marks: Sequence[Mark]
    text: str


@dataclass(frozen=True, kw_only=True)
class Timeline:
    """The lanes of a span of time. name: of the span. hours: positions in percent and labels of the axis."""

    name: str
    lanes: Sequence[Lane]
    hours: Sequence[tuple[float, str]]
    begin: datetime
    end: datetime


def timeline(store: Store, now: datetime) -> Timeline:
    """Returns the last day, or less if no job held workers before that.

    Its end is the end of this minute, so that it is another one once a minute.
    """
    end = now.astimezone(UTC).replace(second=0, microsecond=0) + _MINUTE
    ids = store.recently_active(end - SPANS[-1][0], LANES)
    # A job that has run since before the span, without any change.
    ids += [job_id for job_id in store.active_ids(LANES) if job_id not in ids]
    ids = ids[:LANES]
    jobs = {job.id: job for job in store.several(ids)}
    events: dict[str, list[JobEvent]] = {job_id: [] for job_id in ids}
    for event in store.events_of_jobs(ids, limit=_EVENTS):
        events[event.job_id].append(event)
    held = [event.at for each in events.values() for event in each if event.state in ACTIVE]
    span, step, name = _span(end - min(held, default=end - SPANS[-1][0]))
    begin = end - span
    lanes = [lane(jobs[job_id], events[job_id], begin, end) for job_id in ids if job_id in jobs]
    return Timeline(name=name, lanes=lanes, hours=_hours(begin, end, step), begin=begin, end=end)


def _span(age: timedelta) -> tuple[timedelta, timedelta, str]:
    """Returns the shortest span that has what began so long ago; the longest if none has."""
    return next((each for each in SPANS if age <= each[0]), SPANS[-1])


def lane(job: Job, events: Sequence[JobEvent], begin: datetime, end: datetime) -> Lane:
    """Returns a job's line. events: its changes, in order."""
    scale = _Scale(begin, end)
    bars = list(_bars(events, scale))
    marks = list(_marks(events, scale))
    told = [bar.text for bar in bars] + [mark.text for mark in marks]
    return Lane(job_id=job.id, name=job.name, bars=bars, marks=marks, text="; ".join(told))


@dataclass(frozen=True)
class _Scale:
    begin: datetime
    end: datetime
    seconds: float = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "seconds", (self.end - self.begin).total_seconds())

    def percent(self, moment: datetime) -> float:
        inside = min(max(moment, self.begin), self.end)
        return round(100 * (inside - self.begin).total_seconds() / self.seconds, 3)


def _bars(events: Sequence[JobEvent], scale: _Scale) -> Iterable[Bar]:
    ends = [event.at for event in events[1:]] + [scale.end]
    open_bar: tuple[str, int, int, datetime] | None = None
    for event, until in zip(events, ends, strict=True):
        kind, workers = _kind(event.state), event.workers or 0
        if open_bar is not None and open_bar[:3] != (kind, workers, event.attempt):
            yield from _closed(open_bar, event.at, scale)
            open_bar = None
        if kind and open_bar is None:
            open_bar = (kind, workers, event.attempt, event.at)
        if until is scale.end and open_bar is not None:
            yield from _closed(open_bar, until, scale)


def _closed(bar: tuple[str, int, int, datetime], until: datetime, scale: _Scale) -> Iterable[Bar]:
    kind, workers, attempt, since = bar
    left, right = scale.percent(since), scale.percent(until)
    if until <= scale.begin or since >= scale.end:
        return
    length = duration((until - since).total_seconds())
    text = f"{kind} {length}"
    if kind in {"running", "stopping"}:
        text = f"attempt {attempt}: {kind} on {plural(workers, 'worker')} for {length}"
    stripes = _stripes(workers) if kind in {"running", "stopping"} else ((0.0, 100.0),)
    yield Bar(kind=kind, left=left, width=max(right - left, 0.15), text=text, stripes=stripes)


def _stripes(workers: int) -> Sequence[tuple[float, float]]:
    count = min(max(workers, 1), _STRIPES)
    each = 100 / count
    gap = 0.0 if count == 1 else min(8.0, each / 4)
    return [(round(i * each, 2), round(each - gap, 2)) for i in range(count)]


_KINDS: Mapping[State, str] = {
    State.QUEUED: "waiting",
    State.STARTING: "running",
    State.RUNNING: "running",
    State.PAUSING: "stopping",
    State.PREEMPTING: "stopping",
    State.PAUSED: "paused",
}


def _kind(state: State) -> str:
    return _KINDS.get(state, "")


def _marks(events: Sequence[JobEvent], scale: _Scale) -> Iterable[Mark]:
    for before, event in pairwise(events):
        if not scale.begin <= event.at <= scale.end:
            continue
        reason = event.reason.partition("\n")[0]
        left = scale.percent(event.at)
        if event.type == "restart":
            yield Mark(kind="restarted", left=left, text=f"restarted: {reason}")
        elif event.type == "resize":
            yield Mark(kind="resized", left=left, text=f"to be resized to {event.wanted_workers}")
        elif event.state in _LOST and before.state in ACTIVE and before.state is not State.PREEMPTING:
            yield Mark(
                kind="failed", left=left, text=f"{'failed' if event.state.ended else 'lost'}: {reason}"
            )


def _hours(begin: datetime, end: datetime, step: timedelta) -> list[tuple[float, str]]:
    """Returns the times of day that are whole multiples of a step."""
    scale = _Scale(begin, end)
    midnight = begin.replace(hour=0, minute=0)
    first = midnight + ((begin - midnight) // step + 1) * step
    marks = [first + number * step for number in range((end - first) // step + 1)]
    return [
        (left, moment.isoformat(timespec="minutes"))
        for moment in marks
        if (left := scale.percent(moment)) <= _LAST_LABEL
    ]
