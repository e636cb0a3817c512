"""`cancel`, `pause`, `resume`, `resize`: the commands that act on submitted jobs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Annotated

import typer

from service.cli.options import AsJson, JobId
from service.cli.session import exit_code, problem_document, report, session

if TYPE_CHECKING:
    from rich.console import RenderableType

    from service.client import Client, Job, RequestError

JobIds = Annotated[list[str], typer.Argument(metavar="ID...", help="Ids of the jobs.")]


def cancel(ctx: typer.Context, job_ids: JobIds, as_json: AsJson = False) -> None:
    """Cancel jobs.

    Tries all of them; the exit code is that of the first job that could not be cancelled.
    """
    _each(ctx, job_ids, lambda client, job_id: client.cancel(job_id), as_json)


def pause(ctx: typer.Context, job_ids: JobIds, as_json: AsJson = False) -> None:
    """Pause jobs: each saves a checkpoint and releases its workers.

    Tries all of them; the exit code is that of the first job that could not be paused.
    """
    _each(ctx, job_ids, lambda client, job_id: client.pause(job_id), as_json)


def resume(ctx: typer.Context, job_ids: JobIds, as_json: AsJson = False) -> None:
    """Resume paused jobs: each continues from its checkpoint once there is room.

    Tries all of them; the exit code is that of the first job that could not be resumed.
    """
    _each(ctx, job_ids, lambda client, job_id: client.resume(job_id), as_json)


def resize(
    ctx: typer.Context,
    job_id: JobId,
    workers: Annotated[int, typer.Argument(metavar="N", min=1, help="New number of workers.")],
    as_json: AsJson = False,
) -> None:
    """Change the number of workers of a job that was submitted with a range of workers.

    A running job saves a checkpoint and continues on the new number once there is room. The training result
    stays the same.
    """
    note = f"continues on {workers} worker{'' if workers == 1 else 's'} once there is room"
    _each(ctx, [job_id], lambda client, job_id: client.resize(job_id, workers), as_json, note=note)


def _each(
    ctx: typer.Context,
    job_ids: Iterable[str],
    command: Callable[[Client, str], Job],
    as_json: bool,
    *,
    note: str = "",
) -> None:
    from service.cli import output
    from service.client import RequestError

    jobs: list[Job] = []
    errors: list[RequestError] = []
    with session(ctx, as_json=as_json) as client:
        for job_id in job_ids:
            try:
                jobs.append(command(client, job_id))
            except RequestError as error:
                errors.append(error)
                report(problem_document(error) or {}, as_json=as_json)
    if as_json:
        output.print_json([job.to_json() for job in jobs])
    else:
        rows: list[list[RenderableType]] = [
            [job.id, output.state(job.state), output.headline(note or job.reason or "")] for job in jobs
        ]
        output.console().print(output.table(["ID", "STATE", "REASON"], rows, wrap="REASON"))
    if errors:
        raise typer.Exit(exit_code(errors[0]))
