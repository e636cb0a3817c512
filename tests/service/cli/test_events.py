from __future__ import annotations

import json

from service.client import Client
from service.jobs.job import State
from tests.service.cli.command_line import Syncbn
from tests.service.live_api import SPEC, Service


def test_the_events_of_a_job_are_printed_until_it_has_ended(
    syncbn: Syncbn, client: Client, service: Service
) -> None:
    job = client.submit(SPEC)
    service.start_job(job.id)
    service.end_job(job.id, State.SUCCEEDED)

    printed = syncbn("events", job.id)
    assert printed.exit_code == 0
    assert [line.split("  ")[1] for line in printed.stdout.splitlines()] == [
        "queued",
        "starting",
        "running",
        "succeeded",
    ]
    found = [json.loads(line) for line in syncbn("events", job.id, "--json").stdout.splitlines()]
    assert [event["state"] for event in found] == ["queued", "starting", "running", "succeeded"]
    later = syncbn("events", job.id, "--after", str(found[1]["id"]), "--json").stdout
    assert [json.loads(line) for line in later.splitlines()] == found[2:]
    assert syncbn("events", job.id, "--name", "x").exit_code == 2
    assert syncbn("events", "j" + "0" * 20).exit_code == 4
