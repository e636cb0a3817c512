"""Runs points as jobs through the queue of a service."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from mlflow import MlflowClient

from benchmarks.paper.points import DIGEST, Point
from benchmarks.paper.runs import COMMAND, DIVERGED, MACHINE
from benchmarks.progress import Progress
from service.client import Client, Job

INFINITE = "NonFiniteLoss"
"""The type of the error of a job whose loss became infinite."""
POLL_SECONDS = 1.0


def submit(client: Client, points: Sequence[Point]) -> list[Job]:
    """Queues a job for each point, and returns the jobs in the order of the points."""
    return [client.submit(point.spec) for point in points]


def run(client: Client, points: Sequence[Point], shown: Progress) -> list[Job]:
    """Blocks until every point has been trained, and returns the jobs.

    A job whose loss became infinite is a result. Raises RuntimeError for any other that does not succeed, and
    cancels those that have not ended, as it does for any exception.
    """
    jobs = submit(client, points)
    try:
        return [_ended(client, job, point, shown) for job, point in zip(jobs, points, strict=True)]
    except BaseException:
        for job in jobs:
            if not client.job(job.id).ended:
                client.cancel(job.id)
        raise


def _ended(client: Client, job: Job, point: Point, shown: Progress) -> Job:
    shown.doing(str(point))
    while not (job := client.job(job.id)).ended:
        time.sleep(POLL_SECONDS)
    if job.state == "succeeded":
        shown.done(f"{point}: test accuracy {job.metrics.get('test_accuracy') or float('nan'):.3f}")
    elif diverged(job):
        shown.done(f"{point}: the loss became infinite")
    else:
        raise RuntimeError(f"{point}: job {job.id} {job.state}: {job.reason}\n{client.logs(job.id, tail=30)}")
    return job


def diverged(job: Job) -> bool:
    return job.error is not None and job.error.type == INFINITE


def describe(uri: str, jobs: Sequence[Job], points: Sequence[Point], *, machine: str, command: str) -> None:
    """Tags each job's run with its point, by which `read` finds it, and what else a page says."""
    mlflow = MlflowClient(tracking_uri=uri)
    for job, point in zip(jobs, points, strict=True):
        assert job.mlflow is not None
        tags = {MACHINE: machine, COMMAND: command, DIGEST: point.digest}
        if diverged(job):
            tags[DIVERGED] = "true"
        for key, value in tags.items():
            mlflow.set_tag(job.mlflow.run_id, key, value)


def until_in_mlflow(uri: str, jobs: Sequence[Job], *, seconds: float = 120) -> None:
    """Blocks until the runs of jobs that have ended have ended in MLflow, too. Raises RuntimeError."""
    mlflow, deadline = MlflowClient(tracking_uri=uri), time.monotonic() + seconds

    def ended(job: Job) -> bool:
        assert job.mlflow is not None
        return str(mlflow.get_run(job.mlflow.run_id).info.status) not in {"RUNNING", "SCHEDULED"}

    _until(lambda: all(map(ended, jobs)), deadline)


def _until(is_so: Callable[[], bool], deadline: float) -> None:
    while not is_so():
        if time.monotonic() > deadline:
            raise RuntimeError("MLflow has no end of some runs, whose jobs have ended")
        time.sleep(POLL_SECONDS / 4)


def mlflow_of(jobs: Sequence[Job]) -> str:
    """Returns the address of the MLflow server that has the run of the first job. Raises RuntimeError."""
    url = next((job.mlflow.url for job in jobs if job.mlflow is not None and job.mlflow.url), None)
    if url is None:
        raise RuntimeError("the service does not say where MLflow is; set MLFLOW_TRACKING_URI")
    return url.partition("/#")[0]
