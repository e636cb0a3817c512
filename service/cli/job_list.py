"""`list`: jobs, newest first, one line each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from service.cli.options import AsJson
from service.cli.selection import (
    Experiment,
    Labels,
    Name,
    OfSweep,
    OfUser,
    Order,
    Since,
    States,
    filters,
    resolved,
)
from service.cli.session import session

if TYPE_CHECKING:
    from collections.abc import Callable

    from service.cli.tables import Cell, Column
    from service.client import Job, Progress


def list_jobs(
    ctx: typer.Context,
    states: States = None,
    name: Name = None,
    experiment: Experiment = None,
    labels: Labels = None,
    since: Since = None,
    sweep: OfSweep = None,
    user: OfUser = None,
    order: Order = None,
    limit: Annotated[int, typer.Option(min=1, help="Maximum number to list.")] = 20,
    everything: Annotated[bool, typer.Option("--all", help="List all jobs.")] = False,
    as_json: AsJson = False,
) -> None:
    """List jobs, newest first: syncbn list --state running,queued --name 'digits-*' --since 2d

    Which took longest: syncbn list --order longest

    A terminal shows one line a job, and more columns the wider it is; ids are cut to a beginning that every
    command takes. A pipe gets every column and whole values.
    """
    chosen = filters(states, experiment, labels, since, sweep, user) | {"name": name}
    with session(ctx, as_json=as_json) as client:
        chosen = resolved(client, chosen)
        # One job more than the limit tells whether there are more.
        jobs = list(client.jobs(order=order, limit=None if everything else limit + 1, **chosen))
    shown = jobs if everything else jobs[:limit]
    if as_json:
        from service.cli.output import print_json

        print_json([job.to_json() for job in shown])
    else:
        _print(jobs, len(shown), order)


def _print(jobs: list[Job], shown: int, order: str | None) -> None:
    """Prints the first `shown` jobs; their ids are told apart from those of the others, too."""
    from service.cli import output
    from service.cli.references import short_ids

    screen = output.console()
    if not jobs:
        screen.print("no jobs")
        return
    short = short_ids((job.id for job in jobs), screen)
    screen.print(output.table(job_columns(order), [job_row(job, short) for job in jobs[:shown]]))
    if len(jobs) > shown:
        which = "newest" if order is None else "first"
        screen.print(f"only the {which} {shown}; list more with --all or --limit N", style="dim")


def job_columns(order: str | None = None) -> list[Column]:
    """Returns the columns of a list of jobs, for rows of `job_row`; what they are in order of is shown."""
    from service.cli.tables import Column, Cut

    return [
        Column(name="ID", worth=100),
        Column(name="NAME", worth=90, least=12, cut=Cut.MIDDLE),
        Column(name="STATE", worth=95),
        Column(name="PROGRESS", worth=70),
        Column(name="AGE", worth=80),
        Column(name="TOOK", worth=97 if order == "longest" else 50),
        Column(name="WORKERS", worth=30),
        Column(name="METRIC", worth=40, least=16, cut=Cut.MIDDLE),
        Column(name="CREATED", worth=20),
        Column(name="USER", worth=10, least=8),
        Column(name="STARTS", worth=65, least=16),
        Column(name="REASON", worth=75, least=20),
    ]


def job_row(job: Job, short: Callable[[str], str]) -> list[Cell]:
    """Returns a job's cells. short: shortens an id."""
    from service.cli import output
    from service.cli.expected import expected
    from service.cli.times import age, date, span

    return [
        short(job.id),
        output.clean(job.name),
        output.state(job.state),
        progress_cell(job.progress),
        age(job.created_at),
        span(job.seconds),
        str(job.workers or ""),
        metric_cell(job),
        date(job.created_at),
        output.clean(job.user or ""),
        expected(job.expected_start),
        "" if job.state == "succeeded" else output.first_line(job.reason),
    ]


def progress_cell(progress: Progress | None) -> str:
    """Returns the step and the number of all, as in 3/4; "" before the first."""
    if progress is None:
        return ""
    return f"{progress.step}/{progress.total_steps}" if progress.total_steps else str(progress.step)


def metric_cell(job: Job) -> str:
    """Returns the metric that chooses the best checkpoint, or else the first of test and validation."""
    from service.cli import output
    from training.metric_names import main_metric

    checkpoint = (job.spec.get("training") or {}).get("checkpoint") or {}
    name = main_metric(job.metrics, checkpoint.get("monitor"))
    return "" if name is None else f"{output.clean(name)} {output.metric(job.metrics[name])}"
