"""Jobs that share a commit, in both databases."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from service.access.audit import Note, pending
from service.errors import KeyReused, Refused
from service.jobs.job import Job
from service.queue.store import Store
from tests.service.examples import make_spec

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
