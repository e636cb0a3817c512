"""`logs`, `metrics`: a job's output and its metrics."""

from __future__ import annotations

import json
from itertools import groupby
from typing import TYPE_CHECKING, Annotated

import typer

from service.cli.options import AsJson, JobId
from service.cli.references import job_id
from service.cli.session import session

if TYPE_CHECKING:
    from service.client import Point


def logs(
    ctx: typer.Context,
    job: JobId,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Keep printing until the job has ended.")
    ] = False,
    tail: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="Only the last N lines of each rank.")
    ] = None,
    rank: Annotated[int | None, typer.Option(min=0, metavar="K", help="Only this rank, from 0.")] = None,
    attempt: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Only this attempt, from 1.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Print a job's log.

    A header line precedes the output of each rank and attempt if there are several. --tail prints only
    the latest attempt; with --follow, it continues from there.

    --json prints an object, {"text": ...}; with --follow one object a line, {"line": ..., "rank": ...,
    "attempt": ...}.
    """
    with session(ctx, as_json=as_json) as client:
        some_id = job_id(client, job)
        if not follow:
            text = client.logs(some_id, tail, rank=rank, attempt=attempt)
            typer.echo(json.dumps({"text": text}) if as_json else text, nl=as_json)
        elif as_json:
            for line in client.follow_log_lines(some_id, tail, rank=rank, attempt=attempt):
                typer.echo(json.dumps({"line": line.line, "rank": line.rank, "attempt": line.attempt}))
        else:
            for text in client.follow_logs(some_id, tail, rank=rank, attempt=attempt):
                typer.echo(text)


def metrics(
    ctx: typer.Context,
    job: JobId,
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]...", help="Only these metrics.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show a job's metrics: last, lowest and highest value, and the curve.

    --json prints every point.
    """
    from service.cli import output
    from service.cli.tables import Column, Cut

    with session(ctx, as_json=as_json) as client:
        points = client.metrics(job_id(client, job), names or [])
    if as_json:
        output.print_json([point.to_json() for point in points])
        return
    screen = output.console()
    if not points:
        screen.print("no metrics" + (f" named {', '.join(names)}" if names else " yet"))
        return
    columns = [
        Column(name="METRIC", worth=7, least=16, cut=Cut.MIDDLE),
        Column(name="LAST", worth=6),
        Column(name="MIN", worth=4),
        Column(name="MAX", worth=3),
        Column(name="STEP", worth=2),
        Column(name="POINTS", worth=1),
        Column(name="CURVE", worth=5),
    ]
    screen.print(output.table(columns, _rows(points)))


def _rows(points: list[Point]) -> list[list[str]]:
    from training.metric_names import display_order

    def by_name(point: Point) -> tuple[int, str]:
        return display_order(point.name)

    groups = groupby(sorted(points, key=by_name), by_name)
    return [_row(sorted(group, key=lambda point: point.step)) for _, group in groups]


def _row(points: list[Point]) -> list[str]:
    from service.cli import output

    last, values = points[-1], [point.value for point in points if point.value is not None]
    extremes = [min(values, default=None), max(values, default=None)]
    cells = [output.clean(last.name), output.metric(last.value), *map(output.number, extremes)]
    return [*cells, str(last.step), str(len(points)), output.sparkline(values)]
