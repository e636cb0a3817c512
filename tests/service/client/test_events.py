"""The changes of jobs through the client, over connections that break."""

from __future__ import annotations

import pytest

from service.client import Client, RequestError, event_stream
from service.jobs.job import State
from tests.service.live_api import SPEC, Later, Service


def test_each_change_of_a_job_comes_once_though_connections_break(service: Service, client: Client) -> None:
    job = client.submit(SPEC)
    service.start_job(job.id)
    following = client.events(job.id)
    service.faults.cut_after = 1

    found = [next(following)]
    service.end_job(job.id, State.FAILED)

    found += following
    assert [event.state for event in found] == ["queued", "starting", "running", "failed"]
    assert {(event.job, event.name) for event in found} == {(job.id, "digits")}


def test_the_changes_of_all_jobs_that_match_come_from_now_on_or_after_one(
    client: Client,
) -> None:
    before = client.submit(SPEC)
    following = client.events(labels={"team": "x"}, after=0)
    client.submit(SPEC)
    mine = client.submit({**SPEC, "name": "mine", "labels": {"team": "x"}})

    assert next(following).job == mine.id
    client.cancel(mine.id)
    assert next(following).state == "cancelled"
    client.cancel(before.id)
    assert next(client.events(name="digits", after=1)).job != mine.id
    with pytest.raises(RequestError) as refused:
        next(client.events(before.id, after=10**6))
    assert refused.value.status == 422


def test_a_server_that_restarts_after_a_long_silence_is_waited_for(
    service: Service, later: Later, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_stream, "_STEADY_SECONDS", 0.1)
    with Client(service.url, retry_seconds=4) as client:
        job = client.submit(SPEC)
        following = client.events(job.id)
        next(following)
        later(4.2, restart, service, job.id)  # longer than it retries, and nothing was sent

        assert [event.state for event in following] == ["cancelled"]


def restart(service: Service, job_id: str) -> None:
    service.server.stop()
    service.store.request_cancel(job_id)
    service.server.start()
