"""`events`: the changes of a job, or of all jobs, as they come."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from service.cli.options import AsJson
from service.cli.selection import Experiment, Labels, OfSweep, filters
from service.cli.session import session

if TYPE_CHECKING:
    from service.client import JobEvent


def events(
    ctx: typer.Context,
    job_id: Annotated[
        str | None,
        typer.Argument(metavar="[ID]", show_default=False, help="The job's id. Without one: of all jobs."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Only jobs with this name.")] = None,
    experiment: Experiment = None,
    labels: Labels = None,
    sweep: OfSweep = None,
    after: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="Begin after the change with this id.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Print each change of a job until it has ended, or of all jobs from now on.

    Begins with the first change of a job; --after 0 begins with the first change of all. --json prints one
    object a line; its id is what --after takes.
    """
    chosen = filters(None, experiment, labels, None, sweep)
    chosen = {key: chosen[key] for key in ("experiment", "labels", "sweep") if key in chosen}
    if job_id is not None and (name or any(chosen.values())):
        raise typer.BadParameter("give a job's id, or options that choose jobs, not both")
    with session(ctx, as_json=as_json) as client:
        for event in client.events(job_id, name=name, after=after, **chosen):
            typer.echo(json.dumps(event.to_json()) if as_json else _line(event, named=job_id is None))


def _line(event: JobEvent, *, named: bool) -> str:
    from service.cli.output import clean, headline

    time = event.at.astimezone().strftime("%Y-%m-%d %H:%M:%S")
    what = event.state if event.type == "state" else f"{event.state} ({event.type.replace('_', ' ')})"
    parts = [time, *([event.job, clean(event.name)] if named else []), what, headline(event.reason)]
    return "  ".join(filter(None, parts))
