"""What changes of jobs add to the totals, over both databases."""

from __future__ import annotations

from datetime import timedelta

import pytest

from service.jobs import measures
from service.jobs.job import Job, State, utc_now
from service.jobs.measures import Addition
from service.queue import totals
from service.queue.store import Store
from tests.service.examples import make_spec
from training.protocol import Exit, ExitRecord, Failure

OUT_OF_MEMORY = Failure.of(ExitRecord(rank=0, kind=Exit.OUT_OF_MEMORY, step=3))


def found(store: Store, name: str) -> dict[tuple[str, ...], float]:
    return {
        tuple(each.labels[key] for key in sorted(each.labels)): each.value
        for each in store.totals()
        if each.name == name
    }


def running(store: Store, **changes: object) -> Job:
    job = store.create_job(make_spec(**changes))[0]
    assert store.move(job, State.STARTING, attempt=1, workers=2)
    assert store.move(store.get(job.id), State.RUNNING)
    return store.get(job.id)


def test_a_job_that_failed_counts_its_end_its_time_and_its_devices_once(store: Store) -> None:
    job = running(store, source={"user": "ada"}, tracking={"experiment": "bn"})
    changes = {"ran_seconds": 100.0, "failures": 0, "last_failure": OUT_OF_MEMORY}

    assert store.move(job, State.FAILED, **changes)  # type: ignore[arg-type]
    assert not store.move(job, State.FAILED, **changes)  # type: ignore[arg-type]

    assert found(store, measures.ENDS) == {("out_of_memory", "failed"): 1}
    assert found(store, measures.DEVICE_SECONDS) == {("cpu", "bn", "ada"): 200}
    assert found(store, "job_running_seconds_bucket") == {("300", "failed"): 1}
    assert found(store, "job_running_seconds_sum") == {("failed",): 100}


def test_only_the_first_start_ends_the_waiting(store: Store) -> None:
    job = running(store)
    assert store.move(job, State.QUEUED, failures=1, last_failure=OUT_OF_MEMORY)
    assert store.move(store.get(job.id), State.STARTING, attempt=2, workers=2)

    assert sum(found(store, "job_waiting_seconds_bucket").values()) == 1
    assert found(store, measures.RESTARTS) == {("out_of_memory",): 1}


def test_a_restart_in_place_and_a_preemption_count_by_their_class(store: Store) -> None:
    job = running(store)
    hung = Failure.of(ExitRecord(rank=0, kind=Exit.HUNG))
    restarted = {
        "reason": "",
        "failures": 1,
        "failures_in_row": 1,
        "last_failure": hung,
        "restarts": ("hung",),
        "ran_seconds": 5.0,
    }

    assert store.restart(job, **restarted)  # type: ignore[arg-type]
    assert store.move(store.get(job.id), State.PREEMPTING)

    assert found(store, measures.RESTARTS) == {("hang",): 1, ("preempted",): 1}
    assert sum(found(store, measures.DEVICE_SECONDS).values()) == 10


def test_a_clock_that_was_set_back_makes_no_waiting_negative() -> None:
    now = utc_now()
    job = Job(id="j", name="j", state=State.QUEUED, spec={}, created_at=now + timedelta(hours=1))

    additions = measures.of_move(job, State.STARTING, {}, now)

    assert [each.value for each in additions] == [1, 0]


def test_further_users_share_one_total(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(totals, "MOST_SERIES", 2)
    for user in ("ada", "ben", "cem", "dan", "ada"):
        labels = {"device": "gpu", "user": user, "experiment": "bn"}
        store.add_totals([Addition(name=measures.DEVICE_SECONDS, value=1, labels=labels)])

    assert found(store, measures.DEVICE_SECONDS) == {
        ("gpu", "bn", "ada"): 2,
        ("gpu", "bn", "ben"): 1,
        ("gpu", "other", "other"): 2,
    }
