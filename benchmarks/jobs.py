"""Submits, watches and ends jobs of the service for benchmarks."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from service.client import Client, Job
from service.user_code.pack import pack
from training.spec import load_yaml, override

RECIPE = Path(__file__).parents[1] / "training" / "recipes" / "digits.yaml"
UPLOADED = Path(__file__).parent / "uploaded"
LONGEST_SECONDS = 600.0
POLL_SECONDS = 0.1
ENDLESS = "training.max_epochs=100000"
"""An assignment for `digits`: trains until the job is cancelled."""


def digits(*assignments: str) -> Any:
    """Returns recipes/digits.yaml with these assignments, in the form of `--set`."""
    return override(load_yaml(RECIPE.read_text()), list(assignments))


def upload(client: Client) -> str:
    """Uploads the benchmarks' own modules and returns their digest, for a spec's `code`."""
    return client.upload_code(pack(UPLOADED))


def until(client: Client, job_id: str, is_so: Callable[[Job], bool], *, poll: float = POLL_SECONDS) -> Job:
    """Blocks until the condition holds and returns the job. Raises RuntimeError if it ends or times out."""
    deadline = time.monotonic() + LONGEST_SECONDS
    while not is_so(job := client.job(job_id)):
        if job.ended or time.monotonic() > deadline:
            raise RuntimeError(f"job {job_id} is {job.state}: {job.reason}\n{client.logs(job_id, tail=30)}")
        time.sleep(poll)
    return job


def until_it_trains(client: Client, job_id: str) -> Job:
    return until(client, job_id, lambda job: job.state == "running" and job.progress is not None)


def until_it_succeeds(client: Client, job_id: str) -> Job:
    return until(client, job_id, lambda job: job.state == "succeeded")


def end(client: Client, job_id: str) -> None:
    """Cancels the job and blocks until it has ended."""
    client.cancel(job_id)
    client.wait(job_id, timeout=LONGEST_SECONDS)
