"""Fills a queue's table without the API: with ended, running and queued jobs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, insert

from service.jobs.job import Job, State, new_id, new_job, utc_now
from service.queue.tables import job_labels, jobs
from training.spec import Spec, load_yaml, override, parse_spec

RECIPE = Path(__file__).parents[1] / "training" / "recipes" / "digits.yaml"
SHAPES = (8, 4, 2, 1)
"""Numbers of workers of the jobs, in turns; each worker has one CPU."""

_AT_ONCE = 5_000


def spec(workers: int = SHAPES[0]) -> Spec:
    """Returns recipes/digits.yaml with a label, on `workers` workers."""
    changes = [f"resources.workers={workers}", "labels={team: vision}"]
    return parse_spec(override(load_yaml(RECIPE.read_text()), changes))


def waiting(count: int) -> Iterator[Job]:
    """Returns queued jobs of all shapes, each younger than the one before."""
    begun, shapes = utc_now(), [spec(workers) for workers in SHAPES]
    first = [new_job(shape, created_at=begun) for shape in shapes]
    for number in range(count):
        created = begun + timedelta(milliseconds=number)
        yield replace(first[number % len(first)], id=new_id(created), created_at=created)


def running(count: int) -> Iterator[Job]:
    """Returns running jobs of the largest shape, in their first attempt, older than the queued jobs."""
    begun = utc_now() - timedelta(hours=1)
    first = new_job(spec(), created_at=begun)
    for number in range(count):
        created = begun + timedelta(milliseconds=number)
        yield replace(
            first,
            id=new_id(created),
            created_at=created,
            state=State.RUNNING,
            reason="",
            started_at=created,
            attempt=1,
            start=1,
            workers=SHAPES[0],
            experiment_id="1",
            run_id=f"{number:032x}",
        )


def ended(count: int) -> Iterator[Job]:
    """Returns succeeded jobs with archived logs, older than all others."""
    for job in running(count):
        created = job.created_at - timedelta(days=30)
        yield replace(
            job,
            id=new_id(created),
            created_at=created,
            state=State.SUCCEEDED,
            finished_at=created,
            archived_at=created,
        )


def fill(engine: Engine, some: Iterable[Job]) -> None:
    """Writes the jobs and their labels."""
    left = iter(some)
    while batch := list(islice(left, _AT_ONCE)):
        with engine.begin() as connection:
            connection.execute(insert(jobs), [_row(job) for job in batch])
            labels = [
                {"job_id": job.id, "key": key, "value": value}
                for job in batch
                for key, value in job.labels.items()
            ]
            connection.execute(insert(job_labels), labels)


def _row(job: Job) -> dict[str, Any]:
    return {column.name: getattr(job, column.name, None) for column in jobs.columns}
