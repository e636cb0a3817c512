"""`compare`: jobs beside one another, their parameters that differ and their metrics."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from service.cli import completion
from service.cli.options import AsJson
from service.cli.selection import Experiment, Labels, OfSweep, Since, States, chosen, filters, resolved
from service.cli.session import session

if TYPE_CHECKING:
    from service.cli.comparison import Comparison, Trial
    from service.client import Client, Job

_MOST = 50
_TOO_MANY = f"only the last {_MOST} jobs are compared; choose fewer"
_MAIN = ("test_", "val_", "train_loss")
_PICTURES = (".png", ".svg")


def compare(
    ctx: typer.Context,
    references: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[JOB]...",
            show_default=False,
            help="Ids, unique beginnings of ids, or names, of which each may name several jobs.",
            autocompletion=completion.job,
        ),
    ] = None,
    states: States = None,
    experiment: Experiment = None,
    labels: Labels = None,
    since: Since = None,
    sweep: OfSweep = None,
    metrics: Annotated[
        list[str] | None,
        typer.Option(
            "--metric",
            metavar="NAME",
            help="Only this metric; may be repeated. Default: train_loss, and those of validation and test.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Also draw the curves: FILE.png or FILE.svg."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compare jobs: the parameters that differ, and the metrics.

    Jobs that differ in training.seed alone are one group: the mean, ± the standard deviation, and the number
    of jobs in brackets.

    Name the jobs, choose them with the options, or both: then only those of the named jobs that match.
    """
    if output is not None and output.suffix.lower() not in _PICTURES:
        raise typer.BadParameter(f"write FILE.png or FILE.svg, not {output}", param_hint="--output")
    which = filters(states, experiment, labels, since, sweep)
    if not references and not any(which.values()):
        raise typer.BadParameter(
            "name jobs, or choose them with --sweep, --label, --experiment, --state or --since"
        )
    with session(ctx, as_json=as_json) as client:
        which = resolved(client, which)
        jobs, more = chosen(client, references or [], which, limit=_MOST)
        result = _compared(client, jobs, metrics or [], [_TOO_MANY] if more else [])
        if output is not None:
            _draw(result, output)
    for note in result.notes:
        typer.echo(f"note: {note}", err=True)
    if as_json:
        from service.cli.output import print_json

        print_json(result.to_json())
    else:
        from service.cli.comparison_text import print_comparison

        print_comparison(result)


def _compared(client: Client, jobs: list[Job], names: list[str], notes: list[str]) -> Comparison:
    """Returns the comparison of those jobs that have run. Raises ClientError for fewer than two."""
    from service.cli.comparison import Comparison, groups_of
    from service.client import ClientError

    notes = notes + [f"{_title(job)} never ran: {_why(job)}" for job in jobs if not job.attempt]
    ran = [job for job in jobs if job.attempt]
    if len(ran) < 2:
        found = "one that has run" if ran else "none that has run"
        raise ClientError(". ".join([f"a comparison needs two jobs, and there is {found}", *notes]))
    shown = names or main_metrics(ran)
    trials = [trial(client, job, shown, notes) for job in ran]
    for name in names:
        if not any(name in trial.points for trial in trials):
            known = ", ".join(sorted({metric for job in ran for metric in job.metrics}))
            raise ClientError(f"none of the jobs has a metric {name!r}; they have {known or 'none'}")
    return Comparison(groups=groups_of(trials), metrics=shown, notes=notes)


def _draw(comparison: Comparison, path: Path) -> None:
    from service.cli.comparison_figure import draw
    from service.client import ClientError

    try:
        draw(comparison, path)
    except OSError as error:
        raise ClientError(f"cannot write {path}: {error.strerror or error}") from None


def _title(job: Job) -> str:
    from service.cli.output import clean

    return f"job {job.id} ({clean(job.name)})"


def _why(job: Job) -> str:
    from service.cli.output import headline

    return f"it is {job.state}" + (f": {headline(job.reason)}" if job.reason else "")


def main_metrics(jobs: list[Job]) -> list[str]:
    """Returns the metrics of validation and test and the training loss; without these, all."""
    from training.metric_names import display_order

    names = sorted({name for job in jobs for name in job.metrics}, key=display_order)
    return [name for name in names if name.startswith(_MAIN)] or names


def trial(client: Client, job: Job, names: list[str], notes: list[str]) -> Trial:
    """Returns a job with its points of these metrics; notes why it has none if its run is deleted."""
    from service.cli.comparison import Trial
    from service.client import Point, RequestError

    points: dict[str, list[Point]] = {}
    try:
        for point in client.metrics(job.id, names) if names else []:
            points.setdefault(point.name, []).append(point)
    except RequestError as error:  # MLflow refuses: somebody has deleted the run
        if error.status >= 500:
            raise
        notes.append(f"{_title(job)} has no metrics: {error}")
    ordered: dict[str, Any] = {
        name: sorted(each, key=lambda point: point.step) for name, each in points.items()
    }
    return Trial(job=job, points=ordered)
