"""Builds the launch of an attempt's start from the job's row; code and secrets come on demand."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from service.backends.cluster import Launch
from service.checkpoints import location_of
from service.jobs.job import Job
from service.queue.store import Store
from service.secrets import Secrets
from service.settings import Settings
from training.protocol import Order, attempt_name


def name_of(job: Job) -> str:
    """Returns the name of the job's latest attempt in the cluster."""
    return attempt_name(job.id, job.attempt)


def run_folder(settings: Settings, job: Job) -> Path:
    return Path(settings.storage) / job.id


def launch_of(job: Job, settings: Settings, store: Store) -> Launch:
    """Returns the launch of the start that the row names. The same row always gives the same launch."""
    assert job.workers is not None
    assert job.run_id is not None
    digest: str | None = job.spec.get("code")
    limit = job.time_limit.run
    environment = job.spec.get("environment", {})  # a job of an earlier version has none
    secrets = environment.get("secrets", [])
    start_from = job.spec.get("start_from")  # jobs of version 0.1 have none
    return Launch(
        order=Order(
            attempt=name_of(job),
            start=job.start,
            spec=job.spec,
            ranks=(),
            world_size=job.workers,
            folder=str(run_folder(settings, job)),
            checkpoints=settings.checkpoints and f"{settings.checkpoints}/{job.id}",
            start_from=start_from and location_of(settings, start_from["job"]),
            code=digest,
            mlflow_uri=settings.mlflow_url,
            run_id=job.run_id,
            restarts=job.restarts,
            seconds_left=limit and max(limit - job.ran_seconds, 1.0),
            variables=environment.get("variables", {}),
            user=job.user,
        ),
        resources=job.resources,
        code=partial(store.get_code, digest) if digest else None,
        secrets=partial(Secrets.of(settings, store).values, secrets) if secrets else None,
    )
