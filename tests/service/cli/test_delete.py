"""`delete`, `cleanup`, `retry`, `priority`."""

from __future__ import annotations

import json

import pytest

from service.client import Client
from service.jobs.job import State
from tests.service.cli.command_line import Syncbn
from tests.service.live_api import SPEC, Service


def ended(service: Service, client: Client, state: State = State.FAILED, **changes: object) -> str:
    job = client.submit({**SPEC, **changes})
    service.start_job(job.id)
    service.end_job(job.id, state)
    return job.id


def test_delete_by_id_asks_before_it_does(syncbn: Syncbn, service: Service, client: Client) -> None:
    job_id = ended(service, client)

    refused = syncbn("delete", job_id, stdin="n\n")
    assert (refused.exit_code, "delete 1 job?" in refused.stderr) == (1, True)
    assert job_id in refused.stderr
    assert client.job(job_id).state == "failed"

    done = syncbn("delete", job_id, stdin="y\n")
    assert done.exit_code == 0
    assert done.stdout.endswith("deleted 1 job; their files go soon\n")
    assert list(client.jobs()) == []


def test_delete_by_filter_lists_and_then_deletes_what_has_ended(
    syncbn: Syncbn, service: Service, client: Client
) -> None:
    failed = [ended(service, client, labels={"team": "a"}) for _ in range(2)]
    kept = [ended(service, client), ended(service, client, State.SUCCEEDED, labels={"team": "a"})]
    waiting = client.submit({**SPEC, "labels": {"team": "a"}}).id
    options = ("delete", "--state", "failed", "--label", "team=a", "--older-than", "0s")

    listed = syncbn(*options, "--dry-run", "--json")
    assert [job["id"] for job in json.loads(listed.stdout)] == failed[::-1]
    assert syncbn(*options[:-1], "1d", "--dry-run").stdout == "no job would be deleted\n"
    done = syncbn(*options, "--yes", "--json")

    assert json.loads(done.stdout) == {"deleted": failed[::-1]}
    assert {job.id for job in client.jobs()} == {*kept, waiting}


def test_delete_tries_all_and_says_what_is_in_the_way(
    syncbn: Syncbn, service: Service, client: Client
) -> None:
    waiting, job_id = client.submit(SPEC).id, ended(service, client)

    result = syncbn("delete", waiting, job_id, "--yes")

    assert result.exit_code == 2
    assert f"syncbn cancel {waiting}" in result.stderr
    assert "deleted 1 job" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "give either ids, or options"),
        (("j1", "--state", "failed"), "give either ids, or options"),
        (("--state", "running"), "only jobs that have ended are deleted"),
        (("--older-than", "soon"), "write an age"),
    ],
)
def test_delete_refuses_what_is_not_clear(syncbn: Syncbn, arguments: tuple[str, ...], message: str) -> None:
    result = syncbn("delete", *arguments)

    assert result.exit_code == 2
    assert message in " ".join(result.stderr.replace("│", " ").split())


def test_cleanup_says_that_everything_is_kept(syncbn: Syncbn) -> None:
    assert "everything is kept" in syncbn("cleanup", "--dry-run").stdout
    assert json.loads(syncbn("cleanup", "--json").stdout)["bytes"] == 0


def test_retry_and_priority(syncbn: Syncbn, service: Service, client: Client) -> None:
    job_id, done = ended(service, client), ended(service, client, State.SUCCEEDED)

    result = syncbn("retry", job_id, done)

    assert result.exit_code == 2
    assert f"syncbn extend {done}" in result.stderr
    assert client.job(job_id).state == "queued"
    assert "has priority -5" in syncbn("priority", job_id, "--", "-5").stdout
    assert client.job(job_id).priority == -5
    assert syncbn("cancel", job_id).exit_code == 0
    assert client.job(job_id).ended_by
    shown = syncbn("show", job_id).stdout
    assert "last command  cancel by" in shown
    assert syncbn("retry", "--from-scratch", job_id).exit_code == 0
    assert service.store.get(job_id).from_scratch
