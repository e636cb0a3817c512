"""What the store keeps of a job's attempt while it runs: its starts and its progress, over both databases."""

from __future__ import annotations

import json
import math

import pytest
from sqlalchemy import text

from service.jobs.job import Job, State
from service.queue import database
from service.queue.store import Store
from tests.service.queue.test_store import UNKNOWN, at_once, create, run, start
from training.protocol import Failure, Progress

FAILURE = Failure(kind="signal", type="SIGKILL", code=None, step=3)


def restart(store: Store, job: Job, why: str = "rank 1 was killed by SIGKILL at step 3") -> bool:
    return store.restart(
        job,
        reason=f"{why}; starts again",
        failures=job.failures + 1,
        failures_in_row=1,
        last_failure=FAILURE,
        ran_seconds=0.0,
        restarts=(*job.restarts, why),
    )


def test_an_attempt_is_started_again_where_it_is(store: Store) -> None:
    job = run(store, create(store))
    assert (job.start, job.restarts, job.last_failure) == (1, (), None)

    assert restart(store, job, "first")
    assert restart(store, store.get(job.id), "second")

    again = store.get(job.id)
    assert (again.state, again.attempt, again.start, again.workers) == (State.RUNNING, 1, 3, 2)
    assert (again.failures, again.last_failure, again.restarts) == (2, FAILURE, ("first", "second"))
    assert again.reason == "second; starts again"


def test_the_next_attempt_counts_its_starts_anew_and_remembers_the_last_failure(store: Store) -> None:
    job = run(store, create(store))
    assert restart(store, job)
    assert store.move(store.get(job.id), State.QUEUED, failures=2)

    waiting = store.get(job.id)
    assert (waiting.attempt, waiting.start) == (1, 2)
    again = start(store, waiting)
    assert (again.attempt, again.start, again.restarts) == (2, 1, ())
    assert again.last_failure == FAILURE


def test_what_was_seen_of_an_earlier_start_changes_nothing(store: Store) -> None:
    seen = run(store, create(store))
    assert restart(store, seen)
    now = store.get(seen.id)

    assert not restart(store, seen)
    assert not store.move(seen, State.FAILED, reason="the same failure, seen twice")
    store.note(seen, "too late")

    assert store.get(seen.id) == now


def test_of_many_schedulers_that_see_the_same_failure_one_starts_again(store: Store) -> None:
    job = run(store, create(store))

    won = at_once(8, lambda _: restart(store, job))

    assert sum(won) == 1
    assert (store.get(job.id).start, store.get(job.id).failures) == (2, 1)


@pytest.mark.parametrize("request_", ["request_cancel", "request_pause"])
def test_what_is_to_end_is_not_started_again(store: Store, request_: str) -> None:
    seen = run(store, create(store))
    after = getattr(store, request_)(seen.id)

    assert not restart(store, seen)
    assert store.get(seen.id) == after


def test_to_start_again_what_holds_no_workers_is_a_bug(store: Store) -> None:
    with pytest.raises(AssertionError):
        restart(store, create(store))


# Progress


def progress(step: int, **metrics: float) -> Progress:
    return Progress(step=step, total_steps=9, epoch=0, eta_seconds=1.5, metrics=metrics)


def test_progress_is_kept_for_many_jobs_at_once_and_stays_at_their_end(store: Store) -> None:
    one, two = run(store, create(store)), run(store, create(store))

    store.write_progress([(two, progress(7, train_loss=0.5)), (one, progress(3))])
    assert store.get(one.id).progress == progress(3)
    store.write_progress([(one, progress(2))])
    assert store.move(store.get(two.id), State.SUCCEEDED)

    assert store.get(one.id).progress == progress(2)  # a start from an earlier checkpoint
    assert store.get(two.id).progress == progress(7, train_loss=0.5)


def test_no_progress_is_no_write(store: Store) -> None:
    job = run(store, create(store))

    store.write_progress([])

    assert store.get(job.id) == job


def test_a_late_report_is_for_the_attempt_that_it_is_of(store: Store) -> None:
    first = run(store, create(store))
    store.write_progress([(first, progress(3))])
    assert store.move(first, State.QUEUED, failures=1)

    store.write_progress([(first, progress(4))])
    assert store.get(first.id).progress == progress(3)
    second = run(store, store.get(first.id))
    store.write_progress([(first, progress(5))])
    assert store.get(first.id).progress == progress(3)
    assert store.move(second, State.SUCCEEDED)
    store.write_progress([(first, progress(6)), (second, progress(9))])

    assert store.get(first.id).progress == progress(9)


def test_the_last_word_may_come_with_the_move(store: Store) -> None:
    job = run(store, create(store))

    assert store.move(job, State.QUEUED, progress=progress(8), last_failure=FAILURE)

    after = store.get(job.id)
    assert (after.progress, after.last_failure) == (progress(8), FAILURE)


def test_what_is_not_finite_is_stored_all_the_same(store: Store, database_url: str) -> None:
    job = run(store, create(store))
    reported = Progress(
        step=1,
        total_steps=None,
        epoch=0,
        eta_seconds=math.inf,
        metrics={"a": math.nan, "b": -math.inf, "c": 1e308, "d\ud83d\0": 2.0},
    )

    store.write_progress([(job, reported)])

    kept = store.get(job.id).progress
    assert kept is not None
    assert (kept.total_steps, kept.eta_seconds) == (None, None)
    assert kept.metrics == {"a": math.nan, "b": math.nan, "c": 1e308, "d?\0": 2.0}
    engine = database.make_engine(database_url)
    with engine.connect() as connection:
        raw = connection.execute(text("SELECT progress FROM jobs")).scalar()
    engine.dispose()
    stored = json.loads(raw) if isinstance(raw, str) else raw
    assert stored is not None
    assert stored["metrics"]["a"] is None


def test_several_jobs_are_read_at_once_and_unknown_ones_left_out(store: Store) -> None:
    one, _, three = (create(store) for _ in range(3))

    assert sorted(job.id for job in store.several([three.id, UNKNOWN, one.id])) == [one.id, three.id]
    assert store.several([]) == []
