from __future__ import annotations

import json

from service.client import Client
from service.jobs.job import State
from tests.service.cli.command_line import Syncbn
from tests.service.live_api import SPEC, Service

ELASTIC = {**SPEC, "resources": {"workers": {"min": 1, "max": 4}}}


def rows(stdout: str) -> list[list[str]]:
    """Id and state of each row of the table."""
    return [line.split()[:2] for line in stdout.splitlines()[1:]]


def test_cancel_tries_every_job(syncbn: Syncbn, client: Client) -> None:
    first, last = client.submit(SPEC).id, client.submit(SPEC).id

    result = syncbn("cancel", first, "j-unknown", last)

    assert result.exit_code == 4
    assert "no job 'j-unknown'" in result.stderr
    assert {job.state for job in client.jobs()} == {"cancelled"}
    assert rows(result.stdout) == [[first, "cancelled"], [last, "cancelled"]]


def test_a_job_that_has_ended_cannot_be_cancelled(syncbn: Syncbn, service: Service, client: Client) -> None:
    job = client.submit(SPEC)
    service.start_job(job.id)
    service.end_job(job.id, State.SUCCEEDED)

    result = syncbn("cancel", job.id, "--json")

    assert (result.exit_code, json.loads(result.stdout)) == (2, [])
    assert json.loads(result.stderr)["status"] == 409


def test_a_running_job_that_is_cancelled_says_that_it_stops_soon(
    syncbn: Syncbn, service: Service, client: Client
) -> None:
    job = client.submit(SPEC)
    service.start_job(job.id)

    assert "stops soon" in syncbn("cancel", job.id).stdout


def test_pause_and_resume_take_several_jobs_and_say_where_they_stand(
    syncbn: Syncbn, service: Service, client: Client
) -> None:
    running, waiting = client.submit(SPEC).id, client.submit(SPEC).id
    service.start_job(running)

    paused = syncbn("pause", running, waiting)
    assert (paused.exit_code, rows(paused.stdout)) == (0, [[running, "pausing"], [waiting, "paused"]])

    resumed = syncbn("resume", running, waiting)
    assert resumed.exit_code == 2
    assert "is still pausing" in resumed.stderr
    assert rows(resumed.stdout) == [[waiting, "queued"]]


def test_resize_says_what_becomes_of_it(syncbn: Syncbn, service: Service, client: Client) -> None:
    job = client.submit(ELASTIC)
    service.start_job(job.id)

    result = syncbn("resize", job.id, "3")

    assert result.exit_code == 0
    assert "continues on 3 workers once there is room" in result.stdout
    assert service.store.get(job.id).wanted_workers == 3
