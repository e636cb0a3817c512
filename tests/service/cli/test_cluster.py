from __future__ import annotations

import json

from service.client import Client
from tests.service.cli.command_line import Syncbn
from tests.service.live_api import SPEC


def test_queue_and_cluster_are_tables(syncbn: Syncbn, client: Client) -> None:
    assert syncbn("queue").stdout == "no job is queued\n"
    job = client.submit({**SPEC, "resources": {"workers": 3}})

    queue, cluster = syncbn("queue").stdout, syncbn("cluster").stdout

    assert job.id in queue
    assert "3 workers, 3 CPUs" in queue
    assert [line.split() for line in cluster.splitlines()] == [
        ["NODE", "ADDRESS", "CPUS", "GPUS", "MEMORY"],
        ["node-1", "127.0.0.1", "4", "0"],
        ["total", "4", "0"],
        ["free", "4", "0"],
    ]
    assert json.loads(syncbn("queue", "--json").stdout)[0]["id"] == job.id
    assert json.loads(syncbn("cluster", "--json").stdout)["free"]["cpus"] == 4
