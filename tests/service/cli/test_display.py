from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest
from rich.console import Console

from service.cli import display
from service.client import Client
from service.jobs.job import State
from tests.service.cli.command_line import FAILURE, Syncbn
from tests.service.live_api import SPEC, Later, Service


@pytest.mark.parametrize(("end", "error", "code"), [(State.SUCCEEDED, None, 0), (State.FAILED, FAILURE, 1)])
def test_a_followed_job_is_told_line_by_line_and_its_end_last(
    syncbn: Syncbn,
    client: Client,
    playing: Callable[..., None],
    end: State,
    error: dict[str, Any] | None,
    code: int,
) -> None:
    job = client.submit(SPEC, idempotency_key="same")
    playing(job.id, end, error)

    result = syncbn("submit", "-", "--key", "same", "--follow", stdin=json.dumps(SPEC))

    lines = result.stdout.splitlines()
    assert result.exit_code == code
    assert lines[0] == f"job {job.id}"
    assert "running" in lines
    assert "step 4/4 · epoch 2 · train_loss 0.25 · val_accuracy 1 · test_accuracy 0.97 · 0 s left" in lines
    assert any(line.startswith(f"{end}  digits  after ") for line in lines)
    assert ("  ValueError: bad shape (rank 1)" in lines) == (end is State.FAILED)
    assert any(line.split() == ["test_accuracy", "0.97"] for line in lines)


def test_follow_with_json_keeps_stdout_for_the_job(
    syncbn: Syncbn, client: Client, playing: Callable[..., None]
) -> None:
    playing(client.submit(SPEC, idempotency_key="same").id, State.CANCELLED)

    result = syncbn("submit", "-", "--key", "same", "--follow", "--json", stdin=json.dumps(SPEC))

    assert result.exit_code == 3
    assert json.loads(result.stdout)["state"] == "cancelled"
    assert "running" in result.stderr


def test_an_interrupted_follow_leaves_the_job_and_exits_130(
    service: Service, client: Client, spec: str
) -> None:
    # Said explicitly: what was started in the background of a shell script ignores SIGINT from birth.
    heed = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    main = f"{heed}; from service.cli import main; main()"
    command = [sys.executable, "-c", main, "submit", spec, "--follow"]
    environment = {**os.environ, "SYNCBN_URL": service.url}
    with subprocess.Popen(
        command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        job_id = process.stdout.readline().split()[1]
        assert process.stdout.readline().startswith("queued")
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=60)

    assert process.returncode == 130
    assert "the job continues" in output
    assert f"syncbn cancel {job_id}" in output
    assert errors == ""
    assert client.job(job_id).state == "queued"


def test_a_terminal_shows_the_job_live_and_then_its_result(
    client: Client, playing: Callable[..., None]
) -> None:
    job = client.submit(SPEC)
    playing(job.id, State.SUCCEEDED)
    screen = Console(file=io.StringIO(), force_terminal=True, force_interactive=True, width=100)

    ended = display.follow(client, job.id, screen)

    assert isinstance(screen.file, io.StringIO)
    shown = screen.file.getvalue()
    assert ended.state == "succeeded"
    assert "step 4/4 · epoch 2" in shown
    assert "test_accuracy" in shown
    assert "runs/run-1" in shown


def test_a_server_that_is_away_is_told_once_and_the_follow_goes_on(
    service: Service, client: Client, later: Later
) -> None:
    job = client.submit(SPEC)
    output = io.StringIO()
    said = "the server does not answer; the job continues"

    def restart() -> None:
        service.wait_until_seen(job.id)
        service.server.stop()
        service.store.request_cancel(job.id)
        deadline = time.monotonic() + 60
        while said not in output.getvalue():
            assert time.monotonic() < deadline, "it is not told"
            time.sleep(0.02)
        service.server.start()

    later(0, restart)
    with Client(service.url, retry_seconds=60) as client:
        ended = display.follow(client, job.id, Console(file=output, width=200))

    assert ended.state == "cancelled"
    assert output.getvalue().count(said) == 1


def test_a_submission_that_may_have_arrived_tells_how_to_repeat_it(
    syncbn: Syncbn, service: Service, spec: str
) -> None:
    service.faults.lose_answers = 100

    result = syncbn("submit", spec, "--key", "mine")

    assert result.exit_code == 5
    assert "--key mine" in result.stderr
