"""`checkpoints`, `files`, `download`: a job's checkpoints and other files, and one of them as a copy."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from service.cli.options import AsJson, JobId
from service.cli.session import session
from service.cli.times import moment

if TYPE_CHECKING:
    from service.client import Checkpoint


class Format(enum.StrEnum):
    """What `download` writes."""

    CHECKPOINT = "checkpoint"
    WEIGHTS = "weights"
    SAFETENSORS = "safetensors"


def checkpoints(ctx: typer.Context, job: JobId, as_json: AsJson = False) -> None:
    """List a job's checkpoints: the last ones and the best one are kept."""
    from service.cli import output
    from service.cli.references import job_id
    from service.cli.tables import Column

    with session(ctx, as_json=as_json) as client:
        found = client.checkpoints(job_id(client, job))
    if as_json:
        output.print_json([each.to_json() for each in found])
        return
    screen = output.console()
    if not found:
        screen.print("no checkpoints yet")
        return
    monitor = (found[0].monitor or "metric").upper()
    columns = [
        Column(name="STEP", worth=5),
        Column(name="EPOCH", worth=1),
        Column(name="SAVED", worth=2),
        Column(name="SIZE", worth=3),
        Column(name=output.clean(monitor), worth=4),
        Column(name="", worth=5),
    ]
    screen.print(output.table(columns, map(_row, found)))


def _row(checkpoint: Checkpoint) -> list[str]:
    from rich.filesize import decimal

    from service.cli import output

    return [
        str(checkpoint.step),
        "" if checkpoint.epoch is None else str(checkpoint.epoch),
        moment(checkpoint.saved_at),
        decimal(checkpoint.bytes),
        "" if checkpoint.metric is None else output.number(checkpoint.metric),
        ", ".join(name for name in ("best", "last") if getattr(checkpoint, name)),
    ]


def files(ctx: typer.Context, job: JobId, as_json: AsJson = False) -> None:
    """List the files that a job's own code has written.

    Of a training: those of its loggers and callbacks, and what it wrote to relative paths through the
    Trainer. Of a script: those in SYNCBN_CHECKPOINT_DIR.
    """
    from rich.filesize import decimal

    from service.cli import output
    from service.cli.references import job_id
    from service.cli.tables import Column, Cut

    with session(ctx, as_json=as_json) as client:
        found = client.files(job_id(client, job))
    if as_json:
        output.print_json([each.to_json() for each in found.items])
        return
    if found.items:
        rows = [(decimal(each.bytes), moment(each.saved_at), output.clean(each.path)) for each in found.items]
        path = Column(name="PATH", worth=1, least=40, cut=Cut.MIDDLE)
        output.console().print(output.table(["SIZE", "CHANGED", path], rows))
        typer.echo(f"\nsyncbn download {job} --file PATH", err=True)
    else:
        output.console().print("no files of its own")
    if found.left_out:
        typer.echo(
            f"{found.left_out} entries are not listed: links to folders or to the outside, odd names, no "
            "regular files",
            err=True,
        )


def download(
    ctx: typer.Context,
    job: JobId,
    which: Annotated[
        str | None, typer.Argument(metavar="[best|last|STEP]", help="The checkpoint; the last by default.")
    ] = None,
    file: Annotated[
        str | None,
        typer.Option("--file", metavar="PATH", help="Instead: a file of the job, as syncbn files names it."),
    ] = None,
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="PATH", help="The file, or a folder for it: DIR/.")
    ] = ".",
    kind: Annotated[
        Format,
        typer.Option(
            "--format",
            help="checkpoint: all that Lightning saves, which LightningModule.load_from_checkpoint opens; "
            "weights: the model's state_dict alone, for torch.load; safetensors: the same in that format. "
            "The last two need torch on this machine.",
        ),
    ] = Format.CHECKPOINT,
    as_json: AsJson = False,
) -> None:
    """Download a checkpoint of a job, or with --file another file of it.

    The file is complete when it appears: JOB-step-STEP.ckpt, .pt or .safetensors.
    """
    from service.cli.output import print_json
    from service.cli.references import job_id
    from service.client.weights import write_weights

    if file is not None and (which is not None or kind is not Format.CHECKPOINT):
        raise typer.BadParameter("names one file; it has no checkpoint and no --format", param_hint="--file")
    which = which or "last"
    target = Path(output)
    with session(ctx, as_json=as_json) as client, _writing(target), _progress() as on_progress:
        some_id = job_id(client, job)
        if output.endswith("/"):
            target.mkdir(parents=True, exist_ok=True)
        if file is not None:
            path = client.download_file(some_id, file, target, on_progress=on_progress)
        elif kind is Format.CHECKPOINT:
            path = client.download_checkpoint(some_id, which, target, on_progress=on_progress)
        else:
            with _temporary_folder(target) as folder:
                saved = client.download_checkpoint(some_id, which, folder, on_progress=on_progress)
                path = write_weights(saved, target, safetensors=kind is Format.SAFETENSORS)
    if as_json:
        print_json({"file": str(path), "bytes": path.stat().st_size})
    else:
        typer.echo(str(path))


@contextmanager
def _writing(output: Path) -> Iterator[None]:
    """Turns errors of the disk into usage errors."""
    try:
        yield
    except OSError as error:
        why = f"cannot write to {output}: {error.strerror or error}"
        raise typer.BadParameter(why, param_hint="--output") from None


@contextmanager
def _temporary_folder(output: Path) -> Iterator[Path]:
    """Yields a folder beside the output: the temporary folder of the system may be small."""
    import tempfile

    with tempfile.TemporaryDirectory(dir=output if output.is_dir() else output.parent) as folder:
        yield Path(folder)


@contextmanager
def _progress() -> Iterator[Callable[[int, int | None], None]]:
    """Yields a function that shows the progress on a terminal, on standard error."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    from service.cli.output import console

    screen = console(stderr=True)
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=screen, transient=True, disable=not screen.is_terminal) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
