from __future__ import annotations

import json

from service.client import Client
from tests.service.cli.command_line import Syncbn
from tests.service.live_api import SPEC, Service


def test_queue_and_cluster_are_tables(syncbn: Syncbn, client: Client) -> None:
    assert syncbn("queue").stdout == "no job is queued\n"
    job = client.submit({**SPEC, "resources": {"workers": 3}})

    queue, cluster = syncbn("queue").stdout, syncbn("cluster").stdout

    assert job.id in queue
    assert "3 workers, 3 CPUs" in queue
    assert [line.split() for line in cluster.splitlines()] == [
        ["NODE", "ADDRESS", "CPUS", "GPUS", "MEMORY", "FREE", "LABELS"],
        ["node-1", "127.0.0.1", "4", "0", "4", "CPUs"],
        ["total", "4", "0"],
        ["free", "4", "0"],
    ]
    assert json.loads(syncbn("queue", "--json").stdout)[0]["id"] == job.id
    assert json.loads(syncbn("cluster", "--json").stdout)["free"]["cpus"] == 4


def test_each_machine_says_what_is_free_of_it(syncbn: Syncbn, service: Service, client: Client) -> None:
    job = client.submit({**SPEC, "resources": {"workers": 3}})
    service.start_job(job.id, workers=3)

    machine = syncbn("cluster").stdout.splitlines()[1]

    assert machine.split() == ["node-1", "127.0.0.1", "4", "0", "1", "CPU"]
    assert json.loads(syncbn("cluster", "--json").stdout)["nodes"][0]["free"]["cpus"] == 1


def test_the_head_of_a_long_queue_is_shown_and_how_many_more_wait(syncbn: Syncbn, client: Client) -> None:
    ids = [client.submit(SPEC).id for _ in range(3)]

    head, everything = syncbn("queue", "--limit", "2").stdout, syncbn("queue", "--all").stdout

    assert [job_id in head for job_id in ids] == [True, True, False]
    assert head.splitlines()[-1] == "and 1 more; list them with --all or --limit N"
    assert all(job_id in everything for job_id in ids)
    assert "more" not in everything
    assert len(json.loads(syncbn("queue", "--limit", "2", "--json").stdout)) == 2
