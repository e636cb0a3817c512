"""`show`, `wait`: the state of one job or sweep."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from service.cli.options import AsJson, JobOrSweepId
from service.cli.references import is_sweep, job_or_sweep_id
from service.cli.session import exit_with_state, session
from service.cli.times import moment

if TYPE_CHECKING:
    from rich.console import RenderableType

    from service.client import Job, JobEvent, Sweep


def show(ctx: typer.Context, job_id: JobOrSweepId, as_json: AsJson = False) -> None:
    """Show one job: state, progress, metrics, links. Show a sweep: its state, and a table of its points."""
    from service.cli import output
    from service.cli.sweep_text import print_sweep
    from service.client import Sweep

    with session(ctx, as_json=as_json) as client:
        job_id = job_or_sweep_id(client, job_id)
        found: Job | Sweep = client.sweep(job_id) if is_sweep(job_id) else client.job(job_id)
        changes = [] if as_json or is_sweep(job_id) else client.history(job_id)
    if as_json:
        output.print_json(found.to_json())
    elif isinstance(found, Sweep):
        print_sweep(found, output.console())
    else:
        _print_job(found, changes)


def _print_job(job: Job, changes: list[JobEvent]) -> None:
    from service.cli import display, output
    from service.cli.expected import expected
    from training.spec import SCRIPT_NOTE

    screen = output.console()
    metrics = output.sorted_metrics(job.metrics)
    rows: list[tuple[str, RenderableType | None]] = [
        ("id", job.id),
        ("name", output.clean(job.name)),
        ("state", output.state(job.state)),
        ("reason", _reason(job)),
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
        ("starts", expected(job.expected_start) or None),
        ("removed", ", ".join(job.removed)),
        ("took" if job.ended else "running for", _took(job)),
        ("spent", _times(job, changes)),
        ("attempt", str(job.attempt) if job.attempt else None),
        ("workers", str(job.workers) if job.workers else None),
        ("priority", str(job.priority)),
        ("started from", _source(job)),
        ("model", _model(job)),
        ("weights", job.weights_sha256),
        ("sweep", job.sweep),
        ("user", output.clean(job.user or "")),
        ("labels", output.clean(", ".join(f"{key}={value}" for key, value in job.labels.items()))),
        ("progress", _progress(job)),
        ("metrics", "\n".join(f"{name} {value}" for name, value in metrics)),
        ("MLflow", job.mlflow.url if job.mlflow else None),
        ("load it", display.load_model(job)),
        ("next", display.next_command(job)),
        ("note", SCRIPT_NOTE if job.spec.get("script") else None),
    ]
    screen.print(output.fields(rows))
    display.print_failure(job, screen)


def _reason(job: Job) -> str:
    """Returns the whole reason, or its first line if the error and the end of the log follow."""
    from service.cli import output

    reason = job.reason or ""
    if job.state == "failed" and job.error is not None:
        return output.first_line(reason)
    return "\n".join(map(output.clean, reason.splitlines()))


def _times(job: Job, changes: list[JobEvent]) -> str:
    """Returns how long it waited, started and trained, as in waited 3m, start-up 1s, training 2h5m."""
    from service.cli.times import span, spent

    states = [(change.state, change.at) for change in changes]
    times = spent(states, job.finished_at if job.finished_at and job.ended else datetime.now(UTC))
    parts = {
        "waited": times.get("queued", 0.0),
        "paused": times.get("paused", 0.0),
        "start-up": times.get("starting", 0.0),
        "training": sum(times.get(state, 0.0) for state in ("running", "pausing", "preempting")),
    }
    return ", ".join(f"{name} {span(seconds)}" for name, seconds in parts.items() if seconds >= 0.5)


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


def _progress(job: Job) -> str:
    from service.cli import display
    from service.cli.output import duration

    eta = job.progress.eta_seconds if job.progress and job.state == "running" else None
    return display.progress_text(job) + ("" if eta is None else f" · {duration(eta)} left")


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
    from service.cli.sweep_text import print_sweep
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
        print_sweep(found, output.console())
    else:
        display.print_summary(found, output.console())
    exit_with_state(found)
