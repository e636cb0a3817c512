"""API keys, users and the audit log in both databases."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import pytest

from service.access.audit import AuditEntry, Note, pending
from service.access.caller import Scope
from service.access.keys import ApiKey, new_key
from service.errors import Conflict, KeyReused, NotFound
from service.jobs.job import State, utc_now
from service.queue import stored_audit
from service.queue.store import Store
from tests.service.queue.test_store import SPEC, at_once, create


def make_key(store: Store, user: str = "ada", scope: Scope = Scope.SUBMIT) -> ApiKey:
    key, _ = new_key(user, scope, created_by="root", now=utc_now())
    store.add_key(key)
    return key


@contextmanager
def request(who: str = "ada", action: str = "POST /v1/jobs", about: str = "/v1/jobs") -> Iterator[Note]:
    """What the API does around each request that is to change something."""
    note = Note(who=who, credential="k", address="127.0.0.1", action=action, about=about)
    before = pending.set(note)
    try:
        yield note
    finally:
        pending.reset(before)


def entries(store: Store) -> list[tuple[str, str, str]]:
    return [(entry.who, entry.about, entry.result) for entry in store.list_audit()[0]]


# Keys


def test_a_key_is_found_as_it_was_stored_and_ends_when_it_is_revoked(store: Store) -> None:
    key = make_key(store)

    assert store.find_key(key.id) == key
    assert store.list_keys() == [key]
    revoked = store.revoke_key(key.id)
    assert "was revoked" in str(revoked.problem(utc_now()))
    assert store.revoke_key(key.id) == revoked


def test_a_key_that_is_not_there_cannot_be_revoked(store: Store) -> None:
    assert store.find_key("nothing") is None
    with pytest.raises(NotFound, match="syncbn keys list"):
        store.revoke_key("nothing")


def test_the_use_of_a_key_is_written_down_once_a_minute(store: Store) -> None:
    key, now = make_key(store), utc_now()

    for seconds in (0, 30, 59):
        store.note_use(key, now + timedelta(seconds=seconds))
        assert store.list_keys()[0].last_used_at == now
    store.note_use(store.list_keys()[0], now + timedelta(seconds=60))

    assert store.list_keys()[0].last_used_at == now + timedelta(seconds=60)


# Users


def test_jobs_are_listed_by_the_user_of_their_key(store: Store) -> None:
    mine, _ = store.create_job(SPEC, user="ada")
    store.create_job(SPEC, user="bob")
    create(store)

    assert [job.id for job in store.list_jobs(user="ada")[0]] == [mine.id]
    assert store.get(mine.id).user == "ada"


def test_the_idempotency_key_of_one_user_is_not_that_of_another(store: Store) -> None:
    job, _ = store.create_job(SPEC, idempotency_key="nightly", user="ada")

    assert store.create_job(SPEC, idempotency_key="nightly", user="ada") == (job, False)
    for other in ("bob", None):
        with pytest.raises(KeyReused, match="another user"):
            store.create_job(SPEC, idempotency_key="nightly", user=other)


# The audit log


def test_a_change_and_its_entry_are_one_transaction(store: Store) -> None:
    with request() as note:
        job, _ = store.create_job(SPEC, idempotency_key="k")

    assert note.stored
    assert entries(store) == [("ada", f"/v1/jobs/{job.id}", "done")]


def test_what_changes_nothing_adds_no_entry_by_itself(store: Store) -> None:
    job, _ = store.create_job(SPEC, idempotency_key="k")
    store.request_cancel(job.id)
    assert store.get(job.id).state is State.CANCELLED

    with request() as replayed:
        store.create_job(SPEC, idempotency_key="k")
    with request() as refused, pytest.raises(Conflict):
        store.request_pause(job.id)

    assert not replayed.stored
    assert not refused.stored
    store.add_audit(refused, 409)
    assert entries(store) == [("ada", "/v1/jobs", "refused")]


def test_outside_of_a_request_nothing_is_added(store: Store) -> None:
    create(store)

    assert entries(store) == []


def test_every_kind_of_change_has_an_entry(store: Store) -> None:
    job, key = create(store), make_key(store)

    with request():
        store.request_cancel(job.id)
    with request():
        digest = store.put_code(b"zip")
    with request():
        store.put_secret("TOKEN", b"one")
    with request():
        store.put_secret("TOKEN", b"two")
    with request():
        store.delete_secret("TOKEN")
    with request():
        store.revoke_key(key.id)
    with request():
        new = make_key(store)

    assert [about for _, about, _ in entries(store)] == [
        f"/v1/keys/{new.id}",
        *4 * ["/v1/jobs"],
        f"/v1/code/{digest}",
        "/v1/jobs",
    ]


def test_entries_are_paged_newest_first_and_filtered(store: Store) -> None:
    for number in range(5):
        with request(who="ada" if number % 2 else "bob", about=f"/v1/jobs/j{number}") as note:
            store.add_audit(note, 202)

    seen: list[AuditEntry] = []
    cursor: str | None = None
    while page := store.list_audit(cursor=cursor, limit=2):
        seen += page[0]
        cursor = page[1]
        if cursor is None:
            break

    assert [entry.about for entry in seen] == [f"/v1/jobs/j{number}" for number in (4, 3, 2, 1, 0)]
    assert [entry.about[-1] for entry in store.list_audit(who="ada")[0]] == ["3", "1"]
    assert [entry.about[-1] for entry in store.list_audit(about="j4")[0]] == ["4"]
    assert len(store.list_audit(since=seen[2].at)[0]) == 3


def test_entries_are_removed_by_age_a_bounded_number_at_a_time(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored_audit, "_REMOVED_AT_ONCE", 2)
    for number in range(5):
        with request(about=f"/v1/jobs/j{number}") as note:
            store.add_audit(note, 401, 7)
    times = [entry.at for entry in store.list_audit()[0]]

    removed = [store.remove_old_audit(max(times) + timedelta(milliseconds=1)) for _ in range(2)]
    (left,) = store.list_audit()[0]

    assert store.remove_old_audit(left.at - timedelta(days=1)) == 0
    assert removed == [2, 2]
    assert (left.about, left.count) == ("/v1/jobs/j4", 7)


def test_entries_of_many_requests_at_once_are_all_there(store: Store) -> None:
    def submit(number: int) -> None:
        with request(who=f"user-{number}"):
            store.create_job(SPEC)

    at_once(8, submit)

    assert {who for who, _, _ in entries(store)} == {f"user-{number}" for number in range(8)}
