"""`cancel`, `pause`, `resume`, `resize`, `retry`, `priority`: the commands that change submitted jobs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Annotated

import typer

from service.cli import completion
from service.cli.options import AsJson, JobId
from service.cli.references import is_sweep, job_id, job_or_sweep_id, short_ids
from service.cli.session import exit_code, problem_document, report, session

if TYPE_CHECKING:
    from service.cli.tables import Cell
    from service.client import Client, Job, RequestError, Sweep

    Commands = tuple[Callable[[str], Job], Callable[[str], Sweep] | None]

JobIds = Annotated[
    list[str],
    typer.Argument(
        metavar="JOB...",
        help="Jobs and sweeps: ids, beginnings of ids, or names.",
        autocompletion=completion.job_or_sweep,
    ),
]


def cancel(ctx: typer.Context, job_ids: JobIds, as_json: AsJson = False) -> None:
    """Cancel jobs. Of a sweep all that have not ended.

    Tries all of them; the exit code is that of the first job that could not be cancelled.
    """
    _each(ctx, job_ids, lambda client: (client.cancel, client.cancel_sweep), as_json)


def pause(ctx: typer.Context, job_ids: JobIds, as_json: AsJson = False) -> None:
    """Pause jobs: each saves a checkpoint and releases its workers. Of a paused sweep no job starts.

    Tries all of them; the exit code is that of the first job that could not be paused.
    """
    _each(ctx, job_ids, lambda client: (client.pause, client.pause_sweep), as_json)


def resume(ctx: typer.Context, job_ids: JobIds, as_json: AsJson = False) -> None:
    """Resume paused jobs and sweeps: each job continues from its checkpoint once there is room.

    Tries all of them; the exit code is that of the first job that could not be resumed.
    """
    _each(ctx, job_ids, lambda client: (client.resume, client.resume_sweep), as_json)


def resize(
    ctx: typer.Context,
    reference: JobId,
    workers: Annotated[int, typer.Argument(metavar="N", min=1, help="New number of workers.")],
    as_json: AsJson = False,
) -> None:
    """Change the number of workers of a job that was submitted with a range of workers.

    A running job saves a checkpoint and continues on the new number once there is room. The training result
    stays the same.
    """
    note = f"continues on {workers} worker{'' if workers == 1 else 's'} once there is room"

    def commands(client: Client) -> Commands:
        return lambda job_id: client.resize(job_id, workers), None

    _each(ctx, [reference], commands, as_json, note=note)


def retry(
    ctx: typer.Context,
    job_ids: Annotated[
        list[str],
        typer.Argument(
            metavar="JOB...",
            help="Jobs: ids, beginnings of ids, or names.",
            autocompletion=completion.job,
        ),
    ],
    from_scratch: Annotated[
        bool,
        typer.Option(
            "--from-scratch", help="Begin from step 0 in a new MLflow run: the checkpoints are removed."
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Queue failed or cancelled jobs again: each continues from its last checkpoint, with all its retries.

    Tries all of them; the exit code is that of the first job that could not be retried.
    """

    def commands(client: Client) -> Commands:
        return lambda job_id: client.retry(job_id, from_scratch=from_scratch), None

    _each(ctx, job_ids, commands, as_json)


def priority(
    ctx: typer.Context,
    reference: JobId,
    number: Annotated[
        int, typer.Argument(metavar="N", min=-1000, max=1000, help="Jobs with a higher one start first.")
    ],
    as_json: AsJson = False,
) -> None:
    """Change the priority of a job that has not ended. For a negative one: syncbn priority ID -- -5"""

    def commands(client: Client) -> Commands:
        return lambda job_id: client.set_priority(job_id, number), None

    _each(ctx, [reference], commands, as_json, note=f"has priority {number}")


def _each(
    ctx: typer.Context,
    ids: Iterable[str],
    commands: Callable[[Client], Commands],
    as_json: bool,
    *,
    note: str = "",
) -> None:
    """Gives each job and each sweep its command. commands: for a job, and for a sweep if there is one."""
    from service.cli import output
    from service.cli.tables import Column
    from service.client import RequestError

    found: list[Job | Sweep] = []
    errors: list[RequestError] = []
    with session(ctx, as_json=as_json) as client:
        of_a_job, of_a_sweep = commands(client)
        for each in ids:
            try:
                if of_a_sweep is None:
                    found.append(of_a_job(job_id(client, each)))
                else:
                    some_id = job_or_sweep_id(client, each)
                    found.append((of_a_sweep if is_sweep(some_id) else of_a_job)(some_id))
            except RequestError as error:
                errors.append(error)
                report(problem_document(error) or {}, as_json=as_json)
    if as_json:
        output.print_json([each.to_json() for each in found])
    else:
        screen = output.console()
        short = short_ids((each.id for each in found), screen)
        rows: list[list[Cell]] = [
            [short(each.id), output.state(each.state), output.first_line(note or each.reason)]
            for each in found
        ]
        columns: list[str | Column] = ["ID", "STATE", Column(name="REASON", least=20)]
        screen.print(output.table(columns, rows))
    if errors:
        raise typer.Exit(exit_code(errors[0]))
