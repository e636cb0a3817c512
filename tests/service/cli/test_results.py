from __future__ import annotations

import json

from service.client import Client
from service.jobs.job import State
from tests.service.cli.command_line import Syncbn
from tests.service.live_api import SPEC, Service
from training.protocol import log_file


def test_logs_prints_the_log_whole_tailed_and_followed(
    syncbn: Syncbn, service: Service, client: Client
) -> None:
    job = client.submit(SPEC)
    service.start_job(job.id)
    service.print(job.id, "one\n[red]two[/red]\n")
    service.end_job(job.id, State.SUCCEEDED)

    assert syncbn("logs", job.id).stdout == "one\n[red]two[/red]\n"
    assert syncbn("logs", job.id, "--tail", "1").stdout == "[red]two[/red]\n"
    assert syncbn("logs", job.id, "-f").stdout == "one\n[red]two[/red]\n"
    assert json.loads(syncbn("logs", job.id, "--json").stdout) == {"text": "one\n[red]two[/red]\n"}
    lines = syncbn("logs", job.id, "-f", "--json").stdout.splitlines()
    assert [json.loads(line) for line in lines] == [
        {"line": "one", "rank": 0, "attempt": 1},
        {"line": "[red]two[/red]", "rank": 0, "attempt": 1},
    ]


def test_logs_of_one_rank_one_attempt_and_from_near_the_end_on(
    syncbn: Syncbn, service: Service, client: Client
) -> None:
    job = client.submit(SPEC)
    service.start_job(job.id)
    service.print(job.id, "one\ntwo\n")
    log_file(service.storage / job.id, 1, 1).write_text("other\n")
    service.end_job(job.id, State.SUCCEEDED)

    headers = [f"==> attempt 1, rank {rank} <==" for rank in range(2)]
    assert syncbn("logs", job.id).stdout.splitlines() == [headers[0], "one", "two", headers[1], "other"]
    assert syncbn("logs", job.id, "--rank", "1", "--attempt", "1").stdout == "other\n"
    assert syncbn("logs", job.id, "--rank", "1", "-f").stdout == "other\n"
    assert syncbn("logs", job.id, "--tail", "1", "-f").stdout.splitlines() == [
        *(headers[0], "two"),
        *(headers[1], "other"),
    ]
    unknown = syncbn("logs", job.id, "--rank", "7")
    assert unknown.exit_code == 4
    assert "no log of rank 7" in unknown.stderr


def test_metrics_are_a_table_of_curves(syncbn: Syncbn, service: Service, client: Client) -> None:
    job = client.submit(SPEC)
    assert syncbn("metrics", job.id).stdout == "no metrics yet\n"
    service.train(service.start_job(job.id), 4)

    header, accuracy, loss = syncbn("metrics", job.id).stdout.splitlines()

    assert header.split() == ["METRIC", "LAST", "MIN", "MAX", "STEP", "POINTS", "CURVE"]
    assert accuracy.split() == ["val_accuracy", "1", "0.25", "1", "4", "4", "▁▃▆█"]
    assert loss.split()[:6] == ["train_loss", "0.25", "0.25", "1", "4", "4"]
    points = json.loads(syncbn("metrics", job.id, "train_loss", "--json").stdout)
    assert [(point["name"], point["step"]) for point in points] == [("train_loss", i) for i in range(1, 5)]
