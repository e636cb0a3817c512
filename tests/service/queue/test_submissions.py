"""Jobs that share a commit, in both databases."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace

from service.access.audit import Note, pending
from service.errors import KeyReused, Refused
from service.jobs.job import Job, Removed, State, new_job, utc_now
from service.queue import database
from service.queue.rows import insert_jobs
from service.queue.store import Store
from tests.service.examples import make_spec
from training.protocol import Progress

Outcome = tuple[Job, bool] | BaseException


def submit_together(store: Store, *specs: Mapping[str, object], keys: Mapping[int, str]) -> list[Outcome]:
    """Submits the specs in one group, each by a request of its own. keys: idempotency keys by position."""

    async def submit(number: int, spec: Mapping[str, object]) -> tuple[Job, bool]:
        pending.set(
            Note(who=f"user {number}", credential="k", address="", action="POST /v1/jobs", about="/v1/jobs")
        )
        return await store.submit_job(make_spec(**spec), idempotency_key=keys.get(number))

    async def submit_all() -> list[Outcome]:
        requests = (submit(number, spec) for number, spec in enumerate(specs))
        return await asyncio.gather(*requests, return_exceptions=True)

    return asyncio.run(submit_all())


def test_jobs_of_one_group_are_stored_each_with_its_labels_and_its_entry_in_the_audit_log(
    store: Store,
) -> None:
    specs: list[dict[str, object]] = [
        {"name": "a", "labels": {"team": "x"}},
        {"name": "b"},
        {"name": "c", "labels": {"team": "y"}},
    ]
    found = submit_together(store, *specs, keys={1: "k"})

    jobs = [each[0] for each in found if isinstance(each, tuple) and each[1]]
    assert [job.name for job in jobs] == ["a", "b", "c"]
    assert [store.get(job.id) for job in jobs] == jobs
    assert [job.name for job in store.list_jobs(labels=[("team", "y")])[0]] == ["c"]
    written = {(entry.who, entry.about, entry.result) for entry in store.list_audit()[0]}
    assert written == {(f"user {k}", f"/v1/jobs/{job.id}", "done") for k, job in enumerate(jobs)}


def test_a_job_that_cannot_be_stored_does_not_harm_its_group(store: Store) -> None:
    first, refused, again, reused, last = submit_together(
        store, {}, {"code": "0" * 64}, {}, {"name": "other"}, {"name": "last"}, keys={0: "k", 2: "k", 3: "k"}
    )

    assert isinstance(first, tuple)
    assert again == (first[0], False)
    assert isinstance(refused, Refused)
    assert isinstance(reused, KeyReused)
    assert isinstance(last, tuple)
    assert {job.id for job in store.list_jobs()[0]} == {first[0].id, last[0].id}
    assert {entry.who for entry in store.list_audit()[0]} == {"user 0", "user 4"}


def test_jobs_are_inserted_with_all_that_they_have(store: Store) -> None:
    spec = make_spec(name="größe \\u0041 %s", labels={"a": "1", "b": "ü"})
    new = new_job(spec, created_at=utc_now())
    progress = Progress(step=1, total_steps=2, epoch=0, eta_seconds=None, metrics={"loss": 0.5})
    ended = replace(
        new_job(make_spec(), created_at=utc_now(), user="u"),
        state=State.FAILED,
        error={"kind": "user", "message": "\n"},
        restarts=("rank 1 ended",),
        progress=progress,
        started_at=utc_now(),
        from_scratch=True,
        removed=Removed.LOGS,
    )
    with database.writing(store._engine) as connection:
        insert_jobs(connection, [new, ended], ["k", None])

    assert store.several([new.id, ended.id]) in ([new, ended], [ended, new])
    assert store.list_jobs(labels=[("b", "ü")])[0] == [new]
