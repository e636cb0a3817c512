"""Shows a job while it runs: a live view on a terminal, plain lines elsewhere, a summary at the end."""

from __future__ import annotations

import math
import time

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from service.cli.expected import expected
from service.cli.output import clean, duration, fields, metric, sorted_metrics, state
from service.client import Client, ClientError, Job
from training.metric_names import is_detail

_LINE_SECONDS = 2.0
_LINE_METRICS = 3
_OUTAGE_SECONDS = 5.0  # longer than the client's longest backoff
_OUTAGE = "the server does not answer; the job continues, retrying"


def follow(client: Client, job_id: str, console: Console) -> Job:
    """Shows the job until it has ended, then its summary, and returns it.

    Blocks. Ctrl-C stops the display, not the job: prints that and raises KeyboardInterrupt again.
    """
    watch = _watch_live if console.is_interactive else _watch_lines
    try:
        job = watch(client, job_id, console)
    except KeyboardInterrupt:
        console.print("\nno longer watching; the job continues")
        console.print(fields([("watch", f"syncbn logs -f {job_id}"), ("cancel", f"syncbn cancel {job_id}")]))
        raise
    print_summary(job, console)
    return job


def _watch_lines(client: Client, job_id: str, console: Console) -> Job:
    last_status, last_progress, last_because, printed_at = "", "", "", -math.inf
    outages = _OutageReporter(console)
    for job in client.follow(job_id, on_retry=outages.note):
        if not job.ended and (status := _status(job)) != last_status:
            console.print(status)
            last_status = status
        if job.expected_start is not None and job.expected_start.because != last_because:
            console.print(_expected(job), style="dim")
            last_because = job.expected_start.because
        line = progress_line(job)
        if line and line != last_progress and time.monotonic() - printed_at >= _LINE_SECONDS:
            console.print(line)
            last_progress, printed_at = line, time.monotonic()
    return job


def _status(job: Job) -> str:
    """Returns the state and the reason, or the reason alone if it begins with the state."""
    reason = clean(job.reason or "")
    return reason if reason.startswith(job.state) else ": ".join(filter(None, [job.state, reason]))


def _expected(job: Job) -> str:
    """Returns when the job is expected to start; empty unless it waits."""
    start = expected(job.expected_start)
    return f"starts {start}" if start and job.expected_start and job.expected_start.at else start


def progress_line(job: Job) -> str:
    """Returns a running job's progress: step 120/400 · epoch 3 · train_loss 0.123 · 12 s left.

    Empty if the job is not running or has no progress yet.
    """
    if job.state != "running" or job.progress is None:
        return ""
    metrics = [f"{name} {metric(job.metrics[name])}" for name in _headline(job)]
    eta = job.progress.eta_seconds
    return " · ".join([progress_text(job), *metrics, *([] if eta is None else [f"{duration(eta)} left"])])


def progress_text(job: Job) -> str:
    """Returns the job's step and epoch, as in step 120/400 · epoch 3; empty before the first step."""
    if job.progress is None:
        return ""
    total, epoch = job.progress.total_steps, job.progress.epoch
    steps = f"step {job.progress.step}" + (f"/{total}" if total else "")
    return steps if epoch is None else f"{steps} · epoch {epoch}"


def _headline(job: Job) -> list[str]:
    """Returns the names of up to three metrics for a line: training loss, validation metrics, the rest."""
    first = ("train_loss", "val_accuracy", "val_", "train_", "test_", "")
    names = [name for name in job.metrics if not is_detail(name) and name != "learning_rate"]
    names.sort(key=lambda name: next(i for i, prefix in enumerate(first) if name.startswith(prefix)))
    return names[:_LINE_METRICS]


class _OutageReporter:
    """Prints one line for each outage of the server."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._noted_at = -math.inf

    def note(self, error: ClientError) -> None:
        """Prints `error` unless it belongs to the outage that was printed last."""
        if time.monotonic() - self._noted_at > _OUTAGE_SECONDS:
            self._console.print(f"{_OUTAGE} ({error})")
        self._noted_at = time.monotonic()


def _watch_live(client: Client, job_id: str, console: Console) -> Job:
    view = _View()
    with Live(view, console=console, refresh_per_second=4, transient=True):
        for job in client.follow(job_id, on_retry=view.note_outage):
            view.show(job)
    return job


class _View:
    """The live view. It is redrawn four times a second, so that times advance between two answers."""

    def __init__(self) -> None:
        self._job: Job | None = None
        self._seen_at = time.monotonic()
        self._outage_at = -math.inf

    def note_outage(self, error: ClientError) -> None:  # noqa: ARG002 - there is room for one line
        self._outage_at = time.monotonic()

    def show(self, job: Job) -> None:
        self._job, self._seen_at = job, time.monotonic()

    def __rich__(self) -> RenderableType:
        job = self._job
        if job is None:
            return Text("asking the server ...", style="dim")
        parts: list[RenderableType] = [self._title(job)]
        if job.reason and job.state != "running":
            parts.append(Text(f"  {clean(job.reason)}", style="dim"))
        if start := _expected(job):
            parts.append(Text(f"  {start}", style="dim"))
        if job.progress is not None:
            parts.append(self._bar(job))
        if job.metrics:
            parts.append(_metrics(job))
        if time.monotonic() - self._outage_at < _OUTAGE_SECONDS:
            parts.append(Text(f"  {_OUTAGE}", style="yellow"))
        return Group(*parts)

    def _title(self, job: Job) -> Text:
        title = Text.assemble((clean(job.name), "bold"), "  ", state(job.state))
        facts = [
            f"{job.workers} workers" if job.workers and job.workers > 1 else "",
            f"attempt {job.attempt}" if job.attempt > 1 else "",
            duration(job.seconds) if job.seconds is not None else "",
        ]
        return title.append("".join(f" · {fact}" for fact in facts if fact), style="dim")

    def _bar(self, job: Job) -> Table:
        assert job.progress is not None
        eta = job.progress.eta_seconds
        remaining = "" if eta is None else f"{duration(eta - (time.monotonic() - self._seen_at))} left"
        bar = ProgressBar(total=job.progress.total_steps, completed=job.progress.step, width=40)
        grid = Table.grid(padding=(0, 2))
        grid.add_row("", bar, progress_text(job), remaining)
        return grid


def _metrics(job: Job) -> Table:
    grid = Table.grid(padding=(0, 2))
    for name, value in sorted_metrics(job.metrics):
        grid.add_row("", name, value)
    return grid


def print_summary(job: Job, console: Console) -> None:
    """Prints how the job ended: state, duration, final metrics, links and the next command."""
    took = "before it started" if job.attempt == 0 else ""
    if job.seconds is not None:
        took = f"after {duration(job.seconds)}"
    console.print(Text.assemble(state(job.state), f"  {clean(job.name)}  {took}"))
    if job.state != "failed" and job.reason:
        console.print(f"  {clean(job.reason)}")
    print_failure(job, console)
    rows: list[tuple[str, RenderableType | None]] = [*sorted_metrics(job.metrics)]
    rows.append(("MLflow", job.mlflow.url if job.mlflow else None))
    rows += [("model", load_model(job)), ("next", next_command(job))]
    console.print(fields(rows))


def load_model(job: Job) -> str:
    """Returns the expression that loads the job's model; "" if it has none."""
    if job.mlflow is None or job.state != "succeeded" or job.spec.get("script"):
        return ""
    return f'mlflow.pytorch.load_model("runs:/{job.mlflow.run_id}/model")'


def next_command(job: Job) -> str:
    """Returns the command that says more about an ended job; "" for one that has not ended."""
    if not job.ended:
        return ""
    return f"syncbn {'metrics' if job.state == 'succeeded' else 'logs'} {job.id}"


def print_failure(job: Job, console: Console) -> None:
    """Prints why the job failed, with the end of its log. Prints nothing if the job did not fail."""
    if job.state != "failed":
        return
    if job.error is None:
        console.print(f"  {clean(job.reason or 'no reason is known')}", style="red")
        return
    where = "" if job.error.rank is None else f" (rank {job.error.rank})"
    what = ": ".join(filter(None, [job.error.type, job.error.message]))
    for line in f"{what}{where}".splitlines():
        console.print(_beside("  ", clean(line), "red"))
    if why := why_not_retried(job):
        console.print(_beside("  ", why))
    for line in (job.error.log_tail or "").splitlines():
        console.print(_beside("  │ ", clean(line), "dim"))


def why_not_retried(job: Job) -> str:
    """Returns the sentence of a failed job's reason that follows what happened; "" if there is none."""
    what = (job.error.message or "") if job.error else ""
    said, _, _ = (job.reason or "").partition("\n\nlast lines of the log")
    _, *more = said.splitlines() or [""]
    return clean(more[-1]) if more and more[-1] not in what.splitlines() else ""


def _beside(edge: str, line: str, style: str = "") -> Table:
    """Returns a line behind an edge; in a narrower terminal the rest of it follows below, indented."""
    grid = Table.grid()
    grid.add_column(no_wrap=True, style=style)
    grid.add_column(overflow="fold", style=style)
    grid.add_row(edge, line)
    return grid
