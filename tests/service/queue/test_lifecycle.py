"""Retries of ended jobs, priorities, who did what, deletion and what retention asks, over both databases."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from service.errors import Conflict, KeyReused, NotFound, Refused
from service.jobs.job import Job, Removed, State, utc_now
from service.queue.store import Store
from tests.service.examples import make_spec
from tests.service.queue.test_store import UNKNOWN, create, run
from training.protocol import Failure, Progress

FAILURE = Failure(kind="signal", type="SIGKILL", code=None, step=3)


def ended(store: Store, state: State = State.FAILED, **changes: Any) -> Job:
    job = run(store, create(store, **changes))
    assert store.move(job, state, error={"type": "ValueError"}, failures=2, last_failure=FAILURE)
    job = store.get(job.id)
    assert store.mark_archived(job)
    return store.get(job.id)


def starts_from(job: Job) -> dict[str, Any]:
    return {"start_from": {"job": job.id, "checkpoint": 4}}


# Retry


@pytest.mark.parametrize("state", [State.FAILED, State.CANCELLED])
def test_a_retried_job_is_back_in_the_queue_as_if_nothing_had_failed(store: Store, state: State) -> None:
    job = ended(store, state)

    again = store.request_retry(job.id, by="ada")

    assert (again.state, again.attempt, again.workers) == (State.QUEUED, 1, None)
    assert (again.error, again.finished_at, again.ended_by, again.last_failure) == (None,) * 4
    assert (again.failures, again.failures_in_row, again.from_scratch) == (0, 0, False)
    assert again.last_command is not None
    assert (again.last_command["command"], again.commanded_by) == ("retry", "ada")
    assert again.archived_at is not None  # its run has to be reopened
    assert store.request_retry(job.id) == again
    store.mark_reopened(again)
    assert store.get(job.id).archived_at is None


def test_a_job_that_succeeded_is_not_retried_and_the_refusal_says_what_to_do(store: Store) -> None:
    job = ended(store, State.SUCCEEDED)

    with pytest.raises(Conflict, match=f"nothing to retry.*syncbn extend {job.id}.*syncbn clone {job.id}"):
        store.request_retry(job.id)
    with pytest.raises(NotFound):
        store.request_retry(UNKNOWN)


def test_a_retry_from_step_0_waits_for_its_checkpoints_to_go_and_gets_a_new_run(store: Store) -> None:
    job = ended(store)
    store.write_progress([(job, Progress(step=3, total_steps=9, epoch=0, eta_seconds=None))])
    store.set_run(job.id, "1", "run-1")
    seen = store.request_retry(job.id, from_scratch=True)
    assert seen.from_scratch
    assert store.is_to_begin_again(job.id)

    store.begin_again(job.id)

    now = store.get(job.id)
    assert (now.from_scratch, now.progress, now.run, now.archived_at) == (False, None, None, None)
    assert not store.is_to_begin_again(job.id)
    # Whoever saw it before its checkpoints were asked to go does not start it.
    assert not store.move(seen, State.STARTING, attempt=2, workers=1)


def test_a_retry_needs_what_the_job_starts_from(store: Store) -> None:
    source = ended(store, State.SUCCEEDED)
    job = ended(store, **starts_from(source))
    store.delete_job(source.id)

    with pytest.raises(Refused, match=f"job {source.id}, from which it starts, was deleted"):
        store.request_retry(job.id)


def test_checkpoints_that_another_job_starts_from_are_not_given_up_for_a_retry(store: Store) -> None:
    job = ended(store)
    dependent = create(store, **starts_from(job))

    with pytest.raises(Conflict, match=f"cannot begin from step 0.*job {dependent.id}"):
        store.request_retry(job.id, from_scratch=True)
    assert store.request_retry(job.id).state is State.QUEUED


def test_what_retention_has_removed_cannot_be_retried(store: Store) -> None:
    job = ended(store)
    assert store.begin_removing(job, Removed.CHECKPOINTS)
    with pytest.raises(Conflict, match="try again in a moment"):
        store.request_retry(job.id)

    store.end_removing(job, Removed.CHECKPOINTS)
    with pytest.raises(Conflict, match="syncbn retry --from-scratch"):
        store.request_retry(job.id)
    assert store.request_retry(job.id, from_scratch=True).removed is Removed.NOTHING
    assert not store.begin_removing(job, Removed.LOGS)


# Priority, and who did what


def test_the_priority_of_a_live_job_changes_its_place_in_the_queue(store: Store) -> None:
    old, young = create(store), create(store)

    changed = store.request_priority(young.id, 7, by="ada")

    assert (changed.priority, changed.commanded_by) == (7, "ada")
    assert [job.id for job in store.queue()] == [young.id, old.id]
    running = run(store, old)
    assert store.request_priority(running.id, -3).priority == -3
    with pytest.raises(Conflict, match="has failed already: its priority does not matter"):
        store.request_priority(ended(store).id, 1)


def test_a_cancel_names_who_ended_the_job_and_the_first_one_counts(store: Store) -> None:
    waiting, running = create(store), run(store, create(store))

    assert store.request_cancel(waiting.id, by="ada").ended_by == "ada"
    assert store.request_cancel(waiting.id, by="bob").ended_by == "ada"
    asked = store.request_cancel(running.id, by="ada")
    assert (asked.ended_by, asked.commanded_by) == (None, "ada")
    assert store.request_cancel(running.id, by="bob").commanded_by == "ada"
    assert store.request_cancel(create(store).id).ended_by == ""


@pytest.mark.parametrize("command", ["request_pause", "request_resume"])
def test_a_pause_and_a_resume_say_who_gave_them(store: Store, command: str) -> None:
    job = create(store)
    store.request_pause(job.id, by="ada")

    getattr(store, command)(job.id, by="ada")

    last = store.get(job.id).last_command
    assert last is not None
    assert (last["command"], last["by"]) == (command.removeprefix("request_"), "ada")


# Deletion


def test_a_deleted_job_is_not_shown_and_goes_for_good_later(store: Store) -> None:
    job = ended(store, labels={"team": "a"})

    store.delete_job(job.id, with_run=True, by="ada")
    store.delete_job(job.id)

    with pytest.raises(NotFound, match="was deleted"):
        store.get(job.id)
    assert store.list_jobs()[0] == store.list_jobs(labels=[("team", "a")])[0] == store.several([job.id]) == []
    (marked,) = store.deleted()
    assert (marked.id, marked.commanded_by) == (job.id, "ada")
    assert marked.last_command is not None
    assert marked.last_command["with_run"] is True
    store.remove_job(job.id)
    store.remove_job(job.id)
    assert store.deleted() == []
    with pytest.raises(NotFound):
        store.delete_job(job.id)


def test_what_is_not_archived_is_deleted_only_afterwards(store: Store) -> None:
    job = create(store)
    store.request_cancel(job.id)
    store.delete_job(job.id)
    assert store.deleted() == []

    (unarchived,) = store.unarchived()
    assert store.mark_archived(unarchived)

    assert [marked.id for marked in store.deleted()] == [job.id]


def test_a_job_that_has_not_ended_or_is_needed_is_not_deleted(store: Store) -> None:
    source = ended(store, State.SUCCEEDED)
    dependent = create(store, **starts_from(source))

    with pytest.raises(Conflict, match=f"is queued: .*syncbn cancel {dependent.id}"):
        store.delete_job(dependent.id)
    with pytest.raises(Conflict, match=f"is needed: job {dependent.id} that has not ended starts from"):
        store.delete_job(source.id)
    store.request_cancel(dependent.id)
    store.delete_job(source.id)
    with pytest.raises(Refused) as caught:
        create(store, **starts_from(source))
    assert caught.value.problems[0].key == "start_from.job"


def test_code_goes_with_the_last_job_that_used_it_unless_it_is_uploaded_again(store: Store) -> None:
    digest = store.put_code(b"archive")
    first, last = ended(store, code=digest), ended(store, code=digest)
    for job in (first, last):
        store.delete_job(job.id)

    store.remove_job(first.id)
    assert store.remove_unused_code(0) == 0
    store.remove_job(last.id)
    assert store.remove_unused_code() == 0  # it stays for a while
    assert store.put_code(b"archive") == digest
    assert store.remove_unused_code(0) == 0

    again = ended(store, code=digest)
    store.delete_job(again.id)
    store.remove_job(again.id)
    assert store.remove_unused_code(0) == len(b"archive")
    with pytest.raises(Refused, match="not stored"):
        create(store, code=digest)


def test_the_key_of_a_deleted_job_makes_no_second_one(store: Store) -> None:
    job, _ = store.create_job(make_spec(), idempotency_key="k")
    store.request_cancel(job.id)
    store.delete_job(job.id)

    with pytest.raises(KeyReused, match="was deleted; use a new key"):
        store.create_job(make_spec(), idempotency_key="k")


# Retention


def test_old_jobs_are_found_by_their_end_until_the_part_is_removed(store: Store) -> None:
    jobs = [ended(store) for _ in range(3)]
    create(store)
    later = utc_now() + timedelta(days=1)

    assert store.ended_before(utc_now() - timedelta(days=1), Removed.LOGS) == []
    first = store.ended_before(later, Removed.LOGS, limit=2)
    assert [job.id for job in first] == [job.id for job in jobs[:2]]
    for job in first:
        assert store.begin_removing(job, Removed.LOGS)
    assert [job.id for job in store.being_removed()] == [job.id for job in first]
    assert store.is_removing(first[0], Removed.LOGS)
    store.end_removing(first[0], Removed.LOGS)
    assert not store.is_removing(first[0], Removed.LOGS)
    assert [job.id for job in store.being_removed()] == [first[1].id]
    assert [job.id for job in store.ended_before(later, Removed.LOGS)] == [jobs[2].id]
    assert [job.id for job in store.ended_before(later, Removed.SPOOL)] == [job.id for job in jobs]
    assert store.get(first[0].id).removed.names == ["logs"]


def test_checkpoints_that_a_job_starts_from_are_not_removed(store: Store) -> None:
    source = ended(store)
    dependent = create(store, **starts_from(source))
    assert store.sources_in_use() == {source.id}

    assert not store.begin_removing(source, Removed.CHECKPOINTS)

    store.request_cancel(dependent.id)
    assert store.begin_removing(source, Removed.CHECKPOINTS)
    assert store.sources_in_use() == set()


def test_code_is_old_when_all_its_jobs_are(store: Store) -> None:
    digest = store.put_code(b"archive")
    old, waiting = ended(store, code=digest), create(store, code=digest)
    later = utc_now() + timedelta(days=1)
    assert store.old_code(later) == []
    assert not store.remove_code(digest, later)

    store.request_cancel(waiting.id)
    assert [(each.digest, each.size) for each in store.old_code(later)] == [(digest, 7)]
    assert store.old_code(utc_now() - timedelta(days=1)) == []
    assert store.remove_code(digest, later)

    assert not store.has_code(digest)
    assert store.get(old.id).removed.names == ["code"]
    with pytest.raises(Refused, match="not stored") as caught:
        store.request_retry(old.id)
    assert "upload it first" in caught.value.problems[0].message
