"""`queue`, `cluster`, `ready`: the waiting jobs, the machines, and whether all servers answer."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from service.cli.options import AsJson
from service.cli.session import session

if TYPE_CHECKING:
    from rich.console import RenderableType

    from service.client import Amount, Cluster, Waiting


_HEAD = 20


def queue(
    ctx: typer.Context,
    limit: Annotated[
        int | None,
        typer.Option(min=1, show_default=f"{_HEAD}; with --json all", help="Maximum number to list."),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="List all queued jobs.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show the queued jobs in starting order, and why each one waits."""
    from service.cli import output

    most = None if everything else limit or (None if as_json else _HEAD)
    with session(ctx, as_json=as_json) as client:
        waiting = list(client.queue(limit=most))
        more = client.queue_length() - len(waiting) if len(waiting) == most else 0
    if as_json:
        output.print_json([job.to_json() for job in waiting])
    elif waiting:
        screen = output.console()
        columns = ["", "ID", "NAME", "PRIORITY", "NEEDS", "WAITING", "REASON"]
        screen.print(output.table(columns, map(_waiting, waiting), wrap="REASON"))
        if more > 0:
            screen.print(f"and {more:,} more; list them with --all or --limit N", style="dim")
    else:
        output.console().print("no job is queued")


def _waiting(job: Waiting) -> list[RenderableType]:
    from service.cli import output

    since = output.duration((datetime.now(UTC) - job.created_at).total_seconds())
    name, reason = output.clean(job.name), output.clean(job.reason or "")
    return [str(job.position), job.id, name, str(job.priority), output.total(job.needs), since, reason]


def ready(ctx: typer.Context) -> None:
    """Check that the service and everything it depends on answer. Exit code 0 if so, otherwise 5."""
    from service.cli.options import ExitCode

    with session(ctx) as client:
        if not client.ready():
            typer.echo("not ready: see /readyz", err=True)
            raise typer.Exit(ExitCode.UNREACHABLE)
    typer.echo("ready")


def cluster(ctx: typer.Context, as_json: AsJson = False) -> None:
    """Show the cluster's nodes and free resources."""
    from service.cli import output

    with session(ctx, as_json=as_json) as client:
        answer = client.cluster()
    if as_json:
        output.print_json(answer.to_json())
    else:
        output.console().print(output.table(["NODE", "ADDRESS", "CPUS", "GPUS", "MEMORY"], _nodes(answer)))
        for node in answer.nodes:
            if node.labels:
                labels = (f"{name}={value}" for name, value in sorted(node.labels.items()))
                output.console().print(output.clean(f"labels of {node.id[:12]}: {' '.join(labels)}"))
        if answer.running:
            output.console().print(f"running: {' '.join(answer.running)}")


def _nodes(answer: Cluster) -> list[list[RenderableType]]:
    rows: list[list[RenderableType]] = [[node.id[:12], node.address, *_cells(node)] for node in answer.nodes]
    return [*rows, ["total", "", *_cells(answer.total)], ["free", "", *_cells(answer.free)]]


def _cells(amount: Amount) -> list[str]:
    from service.cli.output import number
    from training.spec import shown_memory

    return [number(amount.cpus), number(amount.gpus), shown_memory(amount.memory) if amount.memory else ""]
