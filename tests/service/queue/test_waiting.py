"""The queue as the scheduler remembers it: the same as a look at the database, and cheaper."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from service.jobs.job import Job, State
from service.queue import waiting
from service.queue.store import Store
from service.queue.waiting import WaitingJobs
from tests.service.examples import make_spec


def create(store: Store, **changes: Any) -> Job:
    return store.create_job(make_spec(**changes))[0]


def slim(job: Job) -> Job:
    kept = {key: job.spec["training"][key] for key in waiting.LENGTH}
    spec = {**{key: job.spec[key] for key in waiting.SCHEDULED}, "training": kept}
    return replace(job, spec=spec, labels={}, error=None)


def check(jobs: WaitingJobs, store: Store) -> None:
    assert [*jobs.look().jobs] == [slim(job) for job in store.queue()]


def test_it_is_the_queue_after_every_change(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "AT_ONCE", 2)
    jobs = WaitingJobs(store=store)
    check(jobs, store)
    first, second, third = (create(store, priority=n, labels={"a": "b"}) for n in (0, 0, 1))
    check(jobs, store)
    assert [job.id for job in jobs.latest.jobs] == [third.id, first.id, second.id]

    store.note(first, "waits")
    check(jobs, store)
    store.request_cancel(second.id)
    check(jobs, store)
    store.set_run(first.id, "1", "run")
    check(jobs, store)
    assert [job.id for job in jobs.latest.without_run] == [third.id]
    assert store.move(store.get(first.id), State.STARTING, attempt=1, workers=1)
    check(jobs, store)
    store.limit_waits({third.id: 7.5})
    check(jobs, store)
    assert jobs.latest.jobs[0].waits_until == 7.5


def test_without_a_change_nothing_is_read_again_and_the_object_is_the_same(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = WaitingJobs(store=store)
    for _ in range(3):
        create(store)
    queue, read = jobs.look(), list[str]()
    several = store.several

    def counted(job_ids: Any) -> list[Job]:
        read.extend(job_ids)
        return several(job_ids)

    monkeypatch.setattr(store, "several", counted)
    assert jobs.look() is queue
    assert read == []

    new = create(store)
    again = jobs.look()

    assert again is not queue
    assert read == [new.id]
    assert [a is b for a, b in zip(queue.jobs, again.jobs, strict=False)] == [True] * 3
    assert len({id(job.spec) for job in again.jobs}) == 1


def test_reasons_that_were_written_need_not_be_read(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs, (one, gone) = WaitingJobs(store=store), (create(store), create(store))
    jobs.look()
    reasons = [(job, "waits behind nobody \x00") for job in jobs.latest.jobs]
    store.request_cancel(gone.id)

    store.note_all(reasons)
    jobs.noted(reasons)

    assert [job.reason for job in jobs.latest.jobs] == [store.get(one.id).reason] * 2
    monkeypatch.setattr(store, "several", lambda ids: [] if not ids else pytest.fail(f"{ids} is read"))
    queue = jobs.look()
    assert [job.id for job in queue.jobs] == [one.id]
    assert queue.jobs[0].resources is jobs.latest.jobs[0].resources


def test_a_job_that_is_started_between_the_two_queries_is_not_queued(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs, job = WaitingJobs(store=store), create(store)
    rows = store.queue_rows()
    store.request_cancel(job.id)
    monkeypatch.setattr(store, "queue_rows", lambda: rows)

    assert jobs.look().jobs == []
