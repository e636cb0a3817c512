"""`queue`, `cluster`, `ready`: the waiting jobs, the machines, and whether all servers answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from service.cli.options import AsJson
from service.cli.session import session

if TYPE_CHECKING:
    from service.cli.tables import Cell, Column
    from service.client import Amount, Cluster, Node, Waiting


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
    from service.cli.references import short_ids

    most = None if everything else limit or (None if as_json else _HEAD)
    with session(ctx, as_json=as_json) as client:
        waiting = list(client.queue(limit=most))
        more = client.queue_length() - len(waiting) if len(waiting) == most else 0
    if as_json:
        output.print_json([job.to_json() for job in waiting])
    elif waiting:
        screen = output.console()
        short = short_ids((job.id for job in waiting), screen)
        screen.print(output.table(queue_columns(), [queue_row(job, short) for job in waiting]))
        if more > 0:
            screen.print(f"and {more:,} more; list them with --all or --limit N", style="dim")
    else:
        output.console().print("no job is queued")


def queue_columns() -> list[Column]:
    """Returns the columns of the queue, for rows of `queue_row`."""
    from service.cli.tables import Column, Cut

    return [
        Column(name="", worth=70),
        Column(name="ID", worth=100),
        Column(name="NAME", worth=80, least=12, cut=Cut.MIDDLE),
        Column(name="PRIORITY", worth=40),
        Column(name="NEEDS", worth=50),
        Column(name="WAITING", worth=60),
        Column(name="SINCE", worth=30),
        Column(name="STARTS", worth=65, least=16),
        Column(name="REASON", worth=90, least=36),
    ]


def queue_row(job: Waiting, short: Callable[[str], str]) -> list[Cell]:
    """Returns a waiting job's cells. short: shortens an id."""
    from service.cli import output
    from service.cli.expected import expected
    from service.cli.times import age, date

    return [
        str(job.position),
        short(job.id),
        output.clean(job.name),
        str(job.priority),
        output.total(job.needs),
        age(job.created_at),
        date(job.created_at),
        expected(job.expected_start),
        output.clean(job.reason or ""),
    ]


def ready(ctx: typer.Context) -> None:
    """Check that the service and everything it depends on answer. Exit code 0 if so, otherwise 5."""
    from service.cli.options import ExitCode

    with session(ctx) as client:
        if not client.ready():
            typer.echo("not ready: see /readyz", err=True)
            raise typer.Exit(ExitCode.UNREACHABLE)
    typer.echo("ready")


def cluster(ctx: typer.Context, as_json: AsJson = False) -> None:
    """Show the cluster's nodes, and what is free of each: an estimate, as Ray decides where workers are."""
    from service.cli import output
    from service.cli.references import short_ids
    from service.cli.tables import shortened

    with session(ctx, as_json=as_json) as client:
        answer = client.cluster()
    if as_json:
        output.print_json(answer.to_json())
    else:
        screen = output.console()
        screen.print(output.table(node_columns(), node_rows(answer)))
        if answer.running:
            short = short_ids(answer.running, screen)
            line = f"running: {' '.join(map(short, answer.running))}"
            screen.print(shortened(line, screen.width))


def node_columns() -> list[Column]:
    """Returns the columns of the nodes, for `node_rows`."""
    from service.cli.tables import Column

    return [
        Column(name="NODE", worth=100),
        Column(name="ADDRESS", worth=60, least=9),
        Column(name="CPUS", worth=90),
        Column(name="GPUS", worth=90),
        Column(name="MEMORY", worth=80),
        Column(name="FREE", worth=85, least=10),
        Column(name="LABELS", worth=50, least=12),
    ]


def node_rows(answer: Cluster) -> list[list[Cell]]:
    """Returns a row for each node, and for all of them what there is and what is free."""
    rows: list[list[Cell]] = [
        [node.id[:12], node.address, *_cells(node), _free(node), _labels(node)] for node in answer.nodes
    ]
    return [*rows, ["total", "", *_cells(answer.total), "", ""], ["free", "", *_cells(answer.free), "", ""]]


def _free(node: Node) -> str:
    """Returns what is free of the kinds that the node has, as in 0.5 CPUs, 1 GPU, 12 GiB."""
    from service.cli.output import number
    from training.spec import shown_memory

    free = node.free
    if free is None:
        return ""
    counts = [(free.cpus, "CPU", node.cpus), (free.gpus, "GPU", node.gpus)]
    parts = [f"{number(left)} {unit}{'' if left == 1 else 's'}" for left, unit, there in counts if there]
    return ", ".join([*parts, shown_memory(free.memory or 0)] if node.memory else parts)


def _labels(node: Node) -> str:
    from service.cli.output import clean

    return clean(" ".join(f"{name}={value}" for name, value in sorted(node.labels.items())))


def _cells(amount: Amount) -> list[str]:
    from service.cli.output import number
    from training.spec import shown_memory

    return [number(amount.cpus), number(amount.gpus), shown_memory(amount.memory) if amount.memory else ""]
