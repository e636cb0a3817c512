"""The tab `attempts` of a job: how each attempt and each rank of it ended, and the job's changes in time."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from fastapi import APIRouter, Request, Response

from service.api.access import caller_or_none
from service.api.context import Context, Services
from service.api.looks import job_topic
from service.jobs.job import ACTIVE, Job, State
from service.queue.stored_events import JobEvent
from service.web import live, rank_ends
from service.web.page import fragment, number_in_query
from service.web.rank_ends import StartEnd
from service.web.shown import first_line

router = APIRouter(include_in_schema=False)
MOST_EVENTS = 500


@dataclass(frozen=True, kw_only=True)
class AttemptView:
    """One placement of the job on machines.

    number: from 1. began: when it got its machines. ended: None while it runs. workers: None if that is not
    known any more. starts: how often its ranks were started. result: the state that followed; None while it
    runs. why: one line.
    """

    number: int
    began: datetime | None
    ended: datetime | None
    workers: int | None
    starts: int
    result: State | None
    why: str

    @property
    def lasted(self) -> float | None:
        """Seconds; None while it runs, or if its begin is not known."""
        return (self.ended - self.began).total_seconds() if self.began and self.ended else None


@dataclass(frozen=True, kw_only=True)
class Change:
    """An event of the timeline. what: in words. more: lines of the reason after the first one."""

    event: JobEvent
    what: str
    why: str
    more: str


@dataclass(frozen=True, kw_only=True)
class AttemptsView:
    """What the tab shows. attempts: newest first. chosen: the number of the one shown in detail; 0: none.

    starts: of the chosen one, newest first. problem: why these are not known. changes: newest first, at most
    MOST_EVENTS; has_earlier: whether there are more.
    """

    attempts: list[AttemptView]
    chosen: int
    starts: list[StartEnd]
    problem: str
    changes: list[Change]
    has_earlier: bool


def values(request: Request, services: Context, job: Job) -> Mapping[str, Any]:
    """Returns what the tab shows. Raises Unavailable."""
    chosen = number_in_query(request, "attempt")
    return {"attempts": _view(services, job, chosen), "asked": chosen}


# Links are relative: the stream has a path as deep as that of its page.
@router.get("/live/job-attempts/{job_id}")
def live_attempts(request: Request, services: Services, job_id: str) -> Response:
    """Keeps the tab up to date."""
    services.job_watcher.snapshot(job_id)  # raises NotFound before the stream begins
    chosen = number_in_query(request, "attempt")
    view = ("attempts", job_id, chosen, caller_or_none(request))
    return live.stream(request, view, _Parts(request, services, job_id, chosen), job_topic(job_id))


class _Parts:
    """Renders the tab again after another event of the job, not whenever its progress has changed."""

    def __init__(self, request: Request, services: Context, job_id: str, chosen: int | None) -> None:
        self._request, self._services, self._job_id, self._chosen = request, services, job_id, chosen
        self._seen: Hashable = None
        self._part = b""

    def __call__(self) -> list[bytes]:
        snapshot = self._services.job_watcher.snapshot(self._job_id)
        job = snapshot.job
        if (now := (snapshot.last_event, job.state, job.reason)) != self._seen:
            view = _view(self._services, job, self._chosen)
            self._part = fragment(self._request, "job_attempts_live.html", job=job, attempts=view)
            self._seen = now
        return [self._part]


def _view(services: Context, job: Job, wanted: int | None) -> AttemptsView:
    events = services.store.events_of_jobs([job.id], limit=MOST_EVENTS + 1)
    has_earlier = len(events) > MOST_EVENTS
    events = events[-MOST_EVENTS:]
    attempts = attempts_of(job, events)
    chosen = min(wanted or job.attempt, job.attempt)
    shown = next((each for each in attempts if each.number == chosen), None)
    starts, problem = rank_ends.of_attempt(
        services.settings.storage, job, chosen, shown.starts if shown else 1
    )
    return AttemptsView(
        attempts=attempts,
        chosen=chosen,
        starts=starts,
        problem=problem,
        changes=[_change(event) for event in reversed(events)],
        has_earlier=has_earlier,
    )


def attempts_of(job: Job, events: Sequence[JobEvent]) -> list[AttemptView]:
    """Returns the attempts that these events, oldest first, tell of; newest first."""
    numbers = sorted({event.attempt for event in events if event.attempt} | ({job.attempt} - {0}))
    return [_attempt(job, number, events) for number in reversed(numbers)]


def _attempt(job: Job, number: int, events: Sequence[JobEvent]) -> AttemptView:
    own = [event for event in events if event.attempt == number]
    held = [event for event in own if event.state in ACTIVE]
    began = next((event.at for event in own if event.state is State.STARTING), None)
    # What follows the last event in which the job held workers. A job that has ended may be retried later.
    end = next((event for event in own if not held or event.id > held[-1].id), None)
    is_over = end is not None and (number < job.attempt or job.state not in ACTIVE)
    return AttemptView(
        number=number,
        began=began,
        ended=end.at if end and is_over else None,
        workers=next((event.workers for event in reversed(held) if event.workers), None),
        starts=max((event.start for event in own), default=job.start) or 1,
        result=end.state if end and is_over else None,
        why=first_line(end.reason if end and is_over else _latest_reason(job, held)),
    )


def _latest_reason(job: Job, held: Sequence[JobEvent]) -> str:
    return job.reason or next((event.reason for event in reversed(held) if event.type == "restart"), "")


def _change(event: JobEvent) -> Change:
    first, _, more = event.reason.partition("\n")
    is_cut = first_line(first) != first
    return Change(
        event=event,
        what=_what(event),
        why=first_line(first),
        more=event.reason if is_cut else more.strip("\n"),
    )


def _what(event: JobEvent) -> str:
    match event.type:
        case "restart":
            return f"start {event.start} of attempt {event.attempt}"
        case "cancel_requested":
            return "cancel requested"
        case "resize":
            return f"resized to {event.wanted_workers}"
        case "priority":
            return f"priority {event.priority}"
    return str(event.state)
