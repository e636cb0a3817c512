from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from service.cli.app import app
from service.jobs.job import State
from tests.service.cli.command_line import Result, Syncbn
from tests.service.live_api import SPEC, Service


@pytest.fixture
def syncbn(service: Service) -> Syncbn:
    """Runs a command line against the service."""

    def run(*arguments: str, stdin: str = "", **environment: str) -> Result:
        env = {"SYNCBN_URL": service.url, "SYNCBN_API_KEY": None, **environment}
        return CliRunner().invoke(app, list(arguments), input=stdin, env=env)

    return run


@pytest.fixture
def spec(tmp_path: Path) -> str:
    path = tmp_path / "spec.yaml"
    path.write_text(yaml.safe_dump(SPEC))
    return str(path)


@pytest.fixture
def playing(service: Service) -> Iterator[Callable[..., None]]:
    """playing(job id, end) plays the job in a thread: it starts, trains four steps, and ends so."""
    threads: list[threading.Thread] = []

    def play(job_id: str, end: State, error: dict[str, Any] | None = None) -> None:
        run = service.start_job(job_id)
        service.print(job_id, "hello from the job\n")
        service.results.log(run, "test_accuracy", 4, 0.97)
        service.train(run, 4)
        service.wait_until_seen(job_id)
        service.end_job(job_id, end, error)

    def start(*arguments: Any) -> None:
        threads.append(threading.Thread(target=play, args=arguments))
        threads[-1].start()

    yield start
    for thread in threads:
        thread.join()
