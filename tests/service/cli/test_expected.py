from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from service.client import Client
from service.jobs.expected import ExpectedStart
from tests.service.cli.command_line import Syncbn
from tests.service.live_api import SPEC, Service

BECAUSE = "when job j1 ends"


def test_show_list_and_queue_say_when_a_job_is_expected_to_start(
    syncbn: Syncbn, service: Service, client: Client
) -> None:
    job = client.submit(SPEC)
    later = datetime.now(UTC) + timedelta(minutes=12, seconds=10)
    start = ExpectedStart(at=later, because=BECAUSE)
    service.store.write_expected([(service.store.get(job.id), start)])

    in_time = f"in about 12 min, {BECAUSE}"
    assert in_time in syncbn("show", job.id).stdout
    assert "in about 12 min" in " ".join(syncbn("queue").stdout.split())
    assert in_time in syncbn("list").stdout
    (waiting,) = json.loads(syncbn("queue", "--json").stdout)
    assert datetime.fromisoformat(waiting["expected_start"]["at"]) == start.at

    service.store.write_expected([(service.store.get(job.id), replace(start, at_latest=True))])
    assert f"at the latest {in_time}" in syncbn("show", job.id).stdout
    service.store.write_expected([(service.store.get(job.id), replace(start, at=None))])
    assert BECAUSE in syncbn("show", job.id).stdout
