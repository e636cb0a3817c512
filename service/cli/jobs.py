"""`show`, `wait`: the state of one job or sweep."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from service.cli.options import AsJson, JobOrSweepId
from service.cli.references import is_sweep, job_or_sweep_id
from service.cli.session import exit_with_state, session
from service.cli.times import moment

if TYPE_CHECKING:
    from rich.console import RenderableType

    from service.client import Job, Sweep


def show(ctx: typer.Context, job_id: JobOrSweepId, as_json: AsJson = False) -> None:
    """Show one job: state, progress, metrics, links. Show a sweep: its state, and a table of its points."""
    from service.cli import output

    with session(ctx, as_json=as_json) as client:
        job_id = job_or_sweep_id(client, job_id)
        found = client.sweep(job_id) if is_sweep(job_id) else client.job(job_id)
    if as_json:
        output.print_json(found.to_json())
    else:
        _print_found(found)


def _print_found(found: Job | Sweep) -> None:
    from service.cli import output
    from service.cli.sweep_text import print_sweep
    from service.client import Sweep

    if isinstance(found, Sweep):
        print_sweep(found, output.console())
    else:
        _print_job(found)


def _print_job(job: Job) -> None:
    from service.cli import display, output
    from training.spec import SCRIPT_NOTE

    screen = output.console()
    metrics = output.sorted_metrics(job.metrics)
    rows: list[tuple[str, RenderableType | None]] = [
        ("id", job.id),
        ("name", output.clean(job.name)),
        ("state", output.state(job.state)),
        ("reason", output.headline(job.reason or "")),
        ("created", moment(job.created_at)),
        ("started", moment(job.started_at)),
        ("finished", moment(job.finished_at)),
        (
            "ended by",
            None if job.ended_by is None else output.clean(job.ended_by or "a user (name not known)"),
        ),
        ("last command", _command(job)),
        ("last failure", _failure(job)),
        ("not before", moment(job.not_before)),
        ("removed", ", ".join(job.removed)),
        ("took" if job.ended else "running for", _took(job)),
        ("attempt", str(job.attempt) if job.attempt else None),
        ("workers", str(job.workers) if job.workers else None),
        ("priority", str(job.priority)),
        ("started from", _source(job)),
        ("model", _model(job)),
        ("sweep", job.sweep),
        ("user", output.clean(job.user or "")),
        ("labels", output.clean(", ".join(f"{key}={value}" for key, value in job.labels.items()))),
        ("progress", display.progress_text(job)),
        ("metrics", "\n".join(f"{name} {value}" for name, value in metrics)),
        ("MLflow", job.mlflow.url if job.mlflow else None),
        ("note", SCRIPT_NOTE if job.spec.get("script") else None),
    ]
    screen.print(output.fields(rows))
    display.print_failure(job, screen)


def _command(job: Job) -> str:
    from service.cli.output import clean

    last = job.last_command
    return "" if last is None else f"{last.command}{last.by and f' by {clean(last.by)}'}, {moment(last.at)}"


def _failure(job: Job) -> str:
    from service.cli.output import clean

    last = job.last_failure
    if last is None:
        return ""
    more = f", {last.in_row} in a row without progress" if last.in_row > 1 else ""
    return f"{last.kind}{last.type and f' ({clean(last.type)})'} at step {last.step}{more}"


def _source(job: Job) -> str:
    """Returns the checkpoint that the job starts from; "" if it starts from none."""
    start = job.spec.get("start_from")
    if not start:
        return ""
    how = "goes on with it" if start.get("state") == "all" else "its weights alone"
    return f"job {start.get('job')}, step {start.get('checkpoint')}: {how}"


def _model(job: Job) -> str:
    """Returns whose weights the job's model has, or will have; "" if the server does not say."""
    from service.cli import output

    checkpoint = job.spec.get("training", {}).get("checkpoint", {})
    if checkpoint.get("deliver") == "best":
        return (
            f"of the best checkpoint, by {output.clean(checkpoint.get('monitor'))} ({checkpoint.get('mode')})"
        )
    return "as after the last step" if checkpoint.get("deliver") == "last" else ""


def _took(job: Job) -> str:
    from service.cli.output import duration

    return "" if job.seconds is None else duration(job.seconds)


def wait(
    ctx: typer.Context,
    job_id: JobOrSweepId,
    timeout: Annotated[
        float | None, typer.Option(min=0, metavar="SECONDS", help="Give up after this time (exit code 124).")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Wait until a job, or all jobs of a sweep, have ended. The exit code says how."""
    from service.cli import display, output
    from service.client import Sweep

    with session(ctx, as_json=as_json) as client:
        job_id = job_or_sweep_id(client, job_id)
        if is_sweep(job_id):
            found: Job | Sweep = client.wait_for_sweep(job_id, timeout=timeout)
        else:
            found = client.wait(job_id, timeout=timeout)
    if as_json:
        output.print_json(found.to_json())
    elif isinstance(found, Sweep):
        _print_found(found)
    else:
        display.print_summary(found, output.console())
    exit_with_state(found)
