"""What people ask of a job, over both databases."""

from __future__ import annotations

import pytest

from service.errors import Conflict, NotFound, Refused
from service.jobs.job import Job, State
from service.queue.store import Store
from tests.service.queue.test_store import UNKNOWN, at_once, create, run, start


def pausing(store: Store) -> Job:
    return store.request_pause(run(store, create(store)).id)


def paused(store: Store) -> Job:
    return store.request_pause(create(store).id)


def preempting(store: Store) -> Job:
    seen = run(store, create(store, resources={"workers": {"min": 1, "max": 4}}))
    assert store.move(seen, State.PREEMPTING, reason="makes room for job x")
    return store.get(seen.id)


def test_a_job_that_waits_is_held_at_once(store: Store) -> None:
    job = paused(store)

    assert (job.state, job.reason, job.finished_at) == (State.PAUSED, "paused while it waited", None)
    assert store.queue() == store.active() == []


def test_a_job_that_is_active_holds_its_workers_until_it_has_stopped(store: Store) -> None:
    starting = store.request_pause(start(store, create(store)).id)
    running = pausing(store)

    assert (starting.state, running.state) == (State.PAUSING, State.PAUSING)
    assert [job.id for job in store.active()] == [starting.id, running.id]
    assert store.move(running, State.PAUSED, reason="paused at step 3")
    after = store.get(running.id)
    assert (after.workers, after.attempt, after.reason) == (None, 1, "paused at step 3")


def test_a_preemption_may_become_a_pause(store: Store) -> None:
    seen = preempting(store)
    assert seen.preempted_at is not None

    job = store.request_pause(seen.id)

    assert (job.state, job.preempted_at) == (State.PAUSING, None)
    assert not store.move(seen, State.QUEUED)


def test_a_preempted_job_is_known_as_one_until_it_starts_again(store: Store) -> None:
    seen = preempting(store)
    assert store.move(seen, State.QUEUED, reason=seen.reason)
    waiting = store.get(seen.id)
    assert (waiting.preempted_at, waiting.workers) == (seen.preempted_at, None)

    assert start(store, waiting).preempted_at is None


def test_a_resumed_job_is_back_in_its_old_place(store: Store) -> None:
    old, young = create(store), create(store)
    store.request_pause(old.id)

    job = store.request_resume(old.id)

    assert (job.state, job.reason) == (State.QUEUED, "resumed; not scheduled yet")
    assert [job.id for job in store.queue()] == [old.id, young.id]


def test_pausing_and_resuming_again_changes_nothing(store: Store) -> None:
    for made in (paused(store), pausing(store)):
        assert store.request_pause(made.id) == made
    for made in (create(store), start(store, create(store)), run(store, create(store)), preempting(store)):
        assert store.request_resume(made.id) == made


def test_a_job_that_is_pausing_is_resumed_later(store: Store) -> None:
    job = pausing(store)

    with pytest.raises(Conflict, match=r"still pausing.* resume it again once it is paused"):
        store.request_resume(job.id)
    assert store.get(job.id) == job


def test_a_paused_job_is_cancelled_at_once_and_a_pausing_one_soon(store: Store) -> None:
    held, stopping = store.request_cancel(paused(store).id), store.request_cancel(pausing(store).id)

    assert (held.state, held.finished_at is not None) == (State.CANCELLED, True)
    assert (stopping.state, stopping.cancel_requested_at is not None) == (State.PAUSING, True)
    assert not store.move(stopping, State.PAUSED)
    assert store.move(stopping, State.CANCELLED)


def test_a_job_that_is_being_cancelled_is_not_preempted(store: Store) -> None:
    seen = run(store, create(store))
    store.request_cancel(seen.id)

    assert not store.move(seen, State.PREEMPTING)


@pytest.mark.parametrize("command", ["request_pause", "request_resume"])
def test_what_has_ended_or_is_to_end_is_a_conflict_that_says_so(store: Store, command: str) -> None:
    ended, cancelled = run(store, create(store)), run(store, create(store))
    store.move(ended, State.SUCCEEDED)
    store.request_cancel(cancelled.id)

    with pytest.raises(Conflict, match="has succeeded already: there is nothing to"):
        getattr(store, command)(ended.id)
    with pytest.raises(Conflict, match="is being cancelled: there is nothing to"):
        getattr(store, command)(cancelled.id)
    for job_id in (UNKNOWN, "\0"):
        with pytest.raises(NotFound):
            getattr(store, command)(job_id)


def test_a_resize_is_kept_and_lifts_the_rest_after_a_start(store: Store) -> None:
    job = create(store, resources={"workers": {"min": 1, "max": 4}})

    resized = store.request_resize(job.id, 3)

    assert (resized.wanted_workers, resized.most_workers, resized.state) == (3, 3, State.QUEUED)
    assert resized.grows_after is None  # at once, whatever its last start says
    assert run(store, resized).wanted_workers == 3


def test_a_resize_that_cannot_be_changes_nothing(store: Store) -> None:
    fixed, elastic = create(store), create(store, resources={"workers": {"min": 2, "max": 4}})

    for job, workers in ((fixed, 1), (elastic, 1), (elastic, 5)):
        with pytest.raises(Refused) as caught:
            store.request_resize(job.id, workers)
        assert caught.value.problems[0].key == "workers"
        assert store.get(job.id) == job
    store.request_cancel(elastic.id)
    with pytest.raises(Conflict, match="was cancelled already"):
        store.request_resize(elastic.id, 2)


@pytest.mark.parametrize("to", [State.STARTING, State.CANCELLED])
def test_a_pause_is_never_lost_however_it_meets_another_change(store: Store, to: State) -> None:
    for _ in range(10):
        job = create(store)

        def act(number: int, job: Job = job) -> object:
            if number:
                return store.move(job, to, attempt=1, workers=1)
            try:
                return store.request_pause(job.id).state
            except Conflict:
                return "too late"

        answer, moved = at_once(2, act)

        after = store.get(job.id).state
        expected = {State.STARTING: State.PAUSING, State.CANCELLED: State.CANCELLED}[to]
        assert after is (expected if moved else State.PAUSED)
        assert (answer == "too late") == (after is State.CANCELLED)
