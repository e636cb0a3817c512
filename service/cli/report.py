"""`report`: what a sweep has found, as Markdown and as one HTML file, also stored with its run in MLflow."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from service.cli import completion
from service.cli.options import AsJson
from service.cli.references import sweep_id
from service.cli.session import session

if TYPE_CHECKING:
    from service.cli.sweep_report import Findings
    from service.client import Client


def report(
    ctx: typer.Context,
    sweep: Annotated[
        str,
        typer.Argument(
            metavar="SWEEP",
            help="A sweep: its id, the beginning of its id, or its name.",
            autocompletion=completion.sweep,
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Folder for report.md and report.html.")
    ] = Path("report"),
    as_json: AsJson = False,
) -> None:
    """Write a report on a sweep: its question, a table, figures, and which points failed.

    The same results give the same files, byte for byte. They are also stored with the sweep's run in MLflow.
    """
    from service.cli.output import print_json
    from service.cli.report_text import html, markdown
    from service.cli.sweep_report import blocks

    with session(ctx, as_json=as_json) as client:
        some_id = sweep_id(client, sweep)
        findings = _found(client, some_id)
        if not findings.sweep.ended:
            typer.echo("note: the sweep has not ended; this is what it has found so far", err=True)
        made = list(blocks(findings))
        texts = {"report.md": markdown(made), "report.html": html(made, f"Sweep {findings.sweep.name}")}
        files = _written(output, texts)
        _store(client, some_id, texts)
    if as_json:
        print_json({"files": files})
    else:
        typer.echo("\n".join(files))


def _found(client: Client, sweep_id: str) -> Findings:
    """Returns the sweep with the metrics of all its jobs. Raises ClientError."""
    from service.cli.compare import main_metrics, trial
    from service.cli.sweep_figures import pictures
    from service.cli.sweep_report import Findings

    sweep = client.sweep(sweep_id)
    jobs = {job.id: job for job in client.jobs(sweep=sweep_id)}
    metrics, notes = main_metrics(list(jobs.values())), list[str]()
    found = [point for point in sweep.points if point.job in jobs]
    if len(found) < len(sweep.points):
        notes.append(f"{len(sweep.points) - len(found)} of {len(sweep.points)} jobs were deleted")
    sweep = sweep.model_copy(update={"points": found})
    trials = [trial(client, jobs[point.job], metrics, notes) for point in found]
    for note in notes:
        typer.echo(f"note: {note}", err=True)
    return Findings(sweep=sweep, trials=trials, metrics=metrics, draw=pictures)


def _written(folder: Path, texts: dict[str, str]) -> list[str]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            (folder / name).write_text(text, encoding="utf-8")
    except OSError as error:
        why = f"cannot write to {folder}: {error.strerror or error}"
        raise typer.BadParameter(why, param_hint="--output") from None
    return [str(folder / name) for name in texts]


def _store(client: Client, sweep_id: str, texts: dict[str, str]) -> None:
    from service.client import RequestError

    try:
        client.upload_report(sweep_id, "report.md", texts["report.md"])
        client.upload_report(sweep_id, "report.html", texts["report.html"])
    except RequestError as error:
        typer.echo(f"note: the report is not in MLflow: {error}", err=True)
