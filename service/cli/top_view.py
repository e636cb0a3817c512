"""What `top` draws: the machines, what runs and what waits, in the lines that there are."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from rich.console import Console, Group, RenderableType
from rich.text import Text

from service.cli import output
from service.cli.cluster import node_columns, node_rows, queue_columns, queue_row
from service.cli.job_list import metric_cell, progress_cell
from service.cli.references import short_ids
from service.cli.snapshots import Snapshot
from service.cli.tables import Cell, Column, Cut, shortened
from service.cli.times import age, span
from service.client import Amount, Job

_NO_LIMIT = 10**9


def view(now: Snapshot, screen: Console, *, height: int | None, url: str) -> RenderableType:
    """Returns the service in at most `height` lines (None: all of them)."""
    machines = [] if now.cluster is None else node_rows(now.cluster)[:-2]
    parts: list[RenderableType] = [*_head(now, screen, url)]
    left = (height or _NO_LIMIT) - len(parts)
    # Each part has an empty line, a header and perhaps a line about the rest of it.
    few = min(len(machines), max(1, left // 6))
    left -= few + 3
    active = min(len(now.active), max(left - 6 - min(len(now.waiting), left // 3), 1))
    waiting = left - active - 6
    short = short_ids([*(job.id for job in now.active), *(job.id for job in now.waiting)], screen)
    parts += _part(node_columns(), machines, len(machines), few, "no machine is known")
    jobs = [_row(job, short(job.id)) for job in now.active]
    parts += _part(_COLUMNS, jobs, len(jobs), active, "nothing runs")
    queue = [queue_row(job, short) for job in now.waiting]
    parts += _part(queue_columns(), queue, now.waiting_total, max(waiting, 1), "nothing waits")
    return Group(*parts)


def _head(now: Snapshot, screen: Console, url: str) -> list[Text]:
    at = now.at.astimezone().strftime("%H:%M:%S")
    facts = [f"{len(now.active)} active", f"{now.waiting_total:,} waiting"]
    if now.cluster is not None:
        facts += _used(now.cluster.total, now.cluster.free)
    lines = [Text(shortened(f"{at}  {'  '.join(facts)}  {url}", screen.width), style="bold")]
    if now.problem:
        seconds = (datetime.now(UTC) - now.at).total_seconds()
        words = f"the server does not answer; this is what it said {span(seconds)} ago ({now.problem})"
        lines.append(Text(shortened(output.clean(words), screen.width), style="yellow"))
    return lines


def _used(total: Amount, free: Amount) -> list[str]:
    amounts = [("CPUs", total.cpus, free.cpus), ("GPUs", total.gpus, free.gpus)]
    return [
        f"{output.number(all_ - left)}/{output.number(all_)} {unit}" for unit, all_, left in amounts if all_
    ]


def _part(
    columns: Sequence[Column], rows: Sequence[Sequence[Cell]], total: int, most: int, none: str
) -> list[RenderableType]:
    """Returns a table of at most `most` rows, and a line about the others. total: the number of all."""
    if not rows:
        return [Text(""), Text(none, style="dim")]
    shown = rows[:most]
    parts: list[RenderableType] = [Text(""), output.table(columns, shown)]
    if total > len(shown):
        parts.append(Text(f"and {total - len(shown):,} more", style="dim"))
    return parts


_COLUMNS = (
    Column(name="ID", worth=100),
    Column(name="NAME", worth=90, least=12, cut=Cut.MIDDLE),
    Column(name="STATE", worth=95),
    Column(name="PROGRESS", worth=80),
    Column(name="LEFT", worth=85),
    Column(name="TOOK", worth=70),
    Column(name="WORKERS", worth=60),
    Column(name="METRIC", worth=75, least=16, cut=Cut.MIDDLE),
    Column(name="AGE", worth=40),
    Column(name="USER", worth=30, least=8),
    Column(name="REASON", worth=50, least=20),
)


def _row(job: Job, short: str) -> list[Cell]:
    return [
        short,
        output.clean(job.name),
        output.state(job.state),
        progress_cell(job.progress),
        span(job.progress.eta_seconds) if job.progress else "",
        span(job.seconds),
        str(job.workers or ""),
        metric_cell(job),
        age(job.created_at),
        output.clean(job.user or ""),
        output.first_line(job.reason),
    ]
