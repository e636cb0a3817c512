"""`events`: the changes of a job, or of all jobs, as they come."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from service.cli import completion
from service.cli.options import AsJson
from service.cli.selection import Experiment, Labels, Name, OfSweep, filters, resolved
from service.cli.session import session

if TYPE_CHECKING:
    from rich.console import Console

    from service.client import JobEvent

_NAME_WIDTH = 24


def events(
    ctx: typer.Context,
    job: Annotated[
        str | None,
        typer.Argument(
            metavar="[JOB]",
            show_default=False,
            help="A job: its id, the beginning of its id, or its name. Without one: of all jobs.",
            autocompletion=completion.job,
        ),
    ] = None,
    name: Name = None,
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
    if job is not None and (name or any(chosen.values())):
        raise typer.BadParameter("give a job's id, or options that choose jobs, not both")
    from service.cli.output import console
    from service.cli.references import job_id

    with session(ctx, as_json=as_json) as client:
        job = None if job is None else job_id(client, job)
        chosen = resolved(client, chosen)
        screen = console()
        for event in client.events(job, name=name, after=after, **chosen):
            line = json.dumps(event.to_json()) if as_json else _line(event, job is None, screen)
            typer.echo(line)


def _line(event: JobEvent, named: bool, screen: Console) -> str:
    """Returns a change on one line, cut at the end of a terminal's. named: whether it names the job."""
    from service.cli.output import clean, first_line
    from service.cli.references import short_ids
    from service.cli.tables import Cut, shortened

    time = event.at.astimezone().strftime("%Y-%m-%d %H:%M:%S")
    what = event.state if event.type == "state" else f"{event.state} ({event.type.replace('_', ' ')})"
    name = clean(event.name)
    if screen.is_terminal:
        name = shortened(name, _NAME_WIDTH, Cut.MIDDLE)
    job = [short_ids([event.job], screen)(event.job), name]
    line = "  ".join(filter(None, [time, *(job if named else []), what, first_line(event.reason)]))
    return shortened(line, screen.width) if screen.is_terminal else line
