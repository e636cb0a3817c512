"""The timeline: what held workers when, from the events of jobs."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from service.jobs.job import Job, State, new_job
from service.queue.store import Store
from service.queue.stored_events import JobEvent
from service.web.timeline import lane, timeline
from tests.service.examples import make_spec

END = datetime(2026, 3, 2, 12, tzinfo=UTC)
BEGIN = END - timedelta(days=1)


def job() -> Job:
    return new_job(make_spec(name="a"), created_at=BEGIN)


def event(hour: float, state: State, *, type: str = "state", attempt: int = 0, workers: int = 0) -> JobEvent:
    return JobEvent(
        id=int(hour * 100),
        job_id="j",
        type=type,
        state=state,
        reason="why\nmore",
        attempt=attempt,
        start=1,
        workers=workers or None,
        wanted_workers=4,
        priority=0,
        at=BEGIN + timedelta(hours=hour),
    )


def test_a_job_that_waits_runs_is_paused_and_goes_on() -> None:
    events = [
        event(-2, State.QUEUED),
        event(6, State.STARTING, attempt=1, workers=2),
        event(6.1, State.RUNNING, attempt=1, workers=2),
        event(12, State.PAUSING, attempt=1, workers=2),
        event(12.1, State.PAUSED, attempt=1),
        event(18, State.RUNNING, attempt=2, workers=3),
        event(24, State.SUCCEEDED, attempt=2, workers=3),
    ]

    shown = lane(job(), events, BEGIN, END)

    assert [(bar.kind, round(bar.left), round(bar.width), len(bar.stripes)) for bar in shown.bars] == [
        ("waiting", 0, 25, 1),
        ("running", 25, 25, 2),
        ("stopping", 50, 0, 2),
        ("paused", 50, 25, 1),
        ("running", 75, 25, 3),
    ]
    assert "attempt 2: running on 3 workers for 6 h" in shown.text
    assert not shown.marks


@pytest.mark.parametrize(
    ("last", "kind", "text"),
    [
        (event(12, State.FAILED, attempt=1), "failed", "failed: why"),
        (event(12, State.QUEUED, attempt=1), "failed", "lost: why"),
        (event(12, State.RUNNING, type="restart", attempt=1, workers=2), "restarted", "restarted: why"),
        (event(12, State.RUNNING, type="resize", attempt=1, workers=2), "resized", "to be resized to 4"),
    ],
)
def test_what_happened_to_it_is_marked(last: JobEvent, kind: str, text: str) -> None:
    shown = lane(job(), [event(6, State.RUNNING, attempt=1, workers=2), last], BEGIN, END)

    assert [(mark.kind, mark.left, mark.text) for mark in shown.marks] == [(kind, 50.0, text)]


def test_a_preempted_job_has_not_failed() -> None:
    events = [event(6, State.PREEMPTING, attempt=1, workers=2), event(7, State.QUEUED, attempt=1)]

    assert not lane(job(), events, BEGIN, END).marks


@pytest.mark.parametrize(
    ("ago", "name", "labels"),
    [
        (timedelta(minutes=5), "the last hour", 6),
        (timedelta(hours=2), "the last 4 hours", 8),
        (timedelta(hours=7), "the last 12 hours", 6),
        (timedelta(hours=20), "the last day", 6),
        (timedelta(days=3), "the last day", 6),
    ],
)
def test_its_span_fits_what_there_is(store: Store, ago: timedelta, name: str, labels: int) -> None:
    job, _ = store.create_job(make_spec())
    assert store.move(job, State.STARTING, attempt=1, workers=2)
    now = (datetime.now(UTC) + ago).replace(second=0, microsecond=0)

    shown = timeline(store, now)

    assert shown.name == name
    assert len(shown.hours) in {labels - 1, labels}  # the time of day decides whether one is near the edge
    assert all(0 <= left <= 97 for left, _ in shown.hours)
    (bar,) = shown.lanes[0].bars[-1:]
    assert bar.width > 7


def test_it_has_the_jobs_that_ran_lately_and_no_others(store: Store) -> None:
    waits, _ = store.create_job(make_spec(name="waits"))
    runs, _ = store.create_job(make_spec(name="runs"))
    assert store.move(runs, State.STARTING, attempt=1, workers=2)

    shown = timeline(store, datetime.now(UTC))

    assert [lane.job_id for lane in shown.lanes] == [runs.id]
    assert shown.lanes[0].bars[-1].kind == "running"
    later = timeline(store, datetime.now(UTC) + timedelta(days=3))
    assert [lane.job_id for lane in later.lanes] == [runs.id]  # it still holds its workers
    assert waits.id not in {lane.job_id for lane in later.lanes}
