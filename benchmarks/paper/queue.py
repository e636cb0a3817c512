"""Runs sweeps through the queue of a service."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from mlflow import MlflowClient

from benchmarks.paper.points import DIGEST, Plan, Point
from benchmarks.paper.runs import COMMAND, DIVERGED, MACHINE
from benchmarks.progress import Progress
from service.client import Client, Job, Sweep

INFINITE = "NonFiniteLoss"
"""The type of the error of a job whose loss became infinite."""
POLL_SECONDS = 1.0


def run(client: Client, plans: Sequence[Plan], shown: Progress) -> list[Job]:
    """Queues each plan as a sweep, blocks until all jobs have ended, and returns them in the points' order.

    A job whose loss became infinite is a result. Raises RuntimeError for any other that does not succeed, and
    cancels the sweeps that have not ended, as it does for any exception.
    """
    sweeps: list[Sweep] = []
    try:
        sweeps += [client.submit_sweep(plan.sweep()) for plan in plans]
        return [
            _ended(client, job.job, point, shown)
            for plan, sweep in zip(plans, sweeps, strict=True)
            for point, job in zip(plan.points(), sweep.points, strict=True)
        ]
    except BaseException:
        for sweep in sweeps:
            if not client.sweep(sweep.id).ended:
                client.cancel_sweep(sweep.id)
        raise


def _ended(client: Client, job_id: str, point: Point, shown: Progress) -> Job:
    shown.doing(str(point))
    while not (job := client.job(job_id)).ended:
        time.sleep(POLL_SECONDS)
    assert job.spec["training"]["seed"] == point.seed, "a sweep's points have another order"
    if job.state == "succeeded":
        tested = {
            name: value for name, value in job.metrics.items() if name in {"test_accuracy", "test_dice"}
        }
        said = [f"{name} {value:.3f}" for name, value in tested.items() if value is not None]
        shown.done(f"{point}: {', '.join(said) or 'done'}")
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
