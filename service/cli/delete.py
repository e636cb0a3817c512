"""`delete`, `cleanup`: what ended jobs leave is removed, by choice or by the policy of retention."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer

from service.cli import completion
from service.cli.options import AsJson
from service.cli.references import job_id, short_ids
from service.cli.selection import Experiment, Labels, Name, OfSweep, Since, States, filters, resolved
from service.cli.session import exit_code, problem_document, report, session
from service.cli.times import date

if TYPE_CHECKING:
    from service.cli.tables import Cell
    from service.client import CleanupItem, CleanupPage, Client, Job

DryRun = Annotated[bool, typer.Option("--dry-run", help="Only list what would go.")]
_ENDED = ("succeeded", "failed", "cancelled")


def delete(
    ctx: typer.Context,
    job_ids: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[JOB]...",
            help="Jobs: ids, beginnings of ids, or names.",
            autocompletion=completion.job,
        ),
    ] = None,
    states: States = None,
    name: Name = None,
    experiment: Experiment = None,
    labels: Labels = None,
    since: Since = None,
    sweep: OfSweep = None,
    older_than: Annotated[
        str | None,
        typer.Option(metavar="AGE", help="Only jobs that ended longer ago than this, as 12h or 30d."),
    ] = None,
    with_run: Annotated[bool, typer.Option("--with-run", help="Delete their MLflow runs, too.")] = False,
    dry_run: DryRun = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Delete ended jobs with their checkpoints, logs, files and code that no other job uses.

    Give ids, or options that choose jobs: syncbn delete --state failed --older-than 30d --dry-run. Their
    MLflow runs stay unless --with-run is given. Asks before it deletes. Tries all of them; the exit code is
    that of the first job that could not be deleted.
    """
    age = None if older_than is None else _age(older_than)
    chosen = filters(states, experiment, labels, since, sweep) | {"name": name}
    if bool(job_ids) == bool(age is not None or any(chosen.values())):
        raise typer.BadParameter(
            "give either ids, or options that choose jobs, as --state failed --older-than 30d"
        )
    if unended := set(chosen["states"]) - set(_ENDED):
        raise typer.BadParameter(
            f"only jobs that have ended are deleted: {', '.join(_ENDED)}, not {min(unended)}; end others "
            "first with syncbn cancel",
            param_hint="--state",
        )
    with session(ctx, as_json=as_json) as client:
        found = _found(client, job_ids, chosen, age)
        if dry_run or (not yes and found):
            _print_jobs(found, as_json=as_json and dry_run, stderr=not dry_run)
        if dry_run:
            return
        if found and not yes:
            typer.confirm(f"delete {len(found)} job{'' if len(found) == 1 else 's'}?", abort=True, err=True)
        _delete(client, found, with_run=with_run, as_json=as_json)


def _found(
    client: Client, job_ids: list[str] | None, chosen: dict[str, Any], age: timedelta | None
) -> list[Job]:
    if job_ids:
        return [client.job(each) for each in dict.fromkeys(job_id(client, each) for each in job_ids)]
    before = datetime.now(UTC) - (age or timedelta())
    chosen = resolved(client, chosen)
    jobs = client.jobs(**{**chosen, "states": chosen["states"] or list(_ENDED)})
    return [job for job in jobs if job.finished_at is None or job.finished_at <= before]


def _print_jobs(jobs: list[Job], *, as_json: bool, stderr: bool) -> None:
    from service.cli import output
    from service.cli.tables import Column, Cut

    if as_json:
        output.print_json([job.to_json() for job in jobs])
        return
    screen = output.console(stderr=stderr)
    if not jobs:
        screen.print("no job would be deleted")
        return
    short = short_ids((job.id for job in jobs), screen)
    rows: list[list[Cell]] = [
        [short(job.id), output.clean(job.name), output.state(job.state), date(job.finished_at)]
        for job in jobs
    ]
    columns: list[str | Column] = ["ID", Column(name="NAME", least=12, cut=Cut.MIDDLE), "STATE", "ENDED"]
    screen.print(output.table(columns, rows))


def _delete(client: Client, jobs: Iterable[Job], *, with_run: bool, as_json: bool) -> None:
    from service.cli import output
    from service.client import RequestError

    deleted, errors = list[str](), list[RequestError]()
    for job in jobs:
        try:
            client.delete(job.id, with_run=with_run)
            deleted.append(job.id)
        except RequestError as error:
            errors.append(error)
            report(problem_document(error) or {}, as_json=as_json)
    if as_json:
        output.print_json({"deleted": deleted})
    else:
        typer.echo(f"deleted {len(deleted)} job{'' if len(deleted) == 1 else 's'}; their files go soon")
    if errors:
        raise typer.Exit(exit_code(errors[0]))


def cleanup(ctx: typer.Context, dry_run: DryRun = False, as_json: AsJson = False) -> None:
    """Remove what the policy of retention gives up, and print what that freed.

    The policy is in the service's settings, SYNCBN_RETENTION_…_DAYS; by default everything is kept. The
    service does the same by itself, slowly, in the background.
    """
    from service.cli import output

    with session(ctx, as_json=as_json) as client:
        pages = list(client.cleanup_plan() if dry_run else client.clean_up())
    items = [item for page in pages for item in page.items]
    problems = [problem for page in pages for problem in page.problems]
    total = sum(item.bytes for item in items)
    if as_json:
        output.print_json(
            {
                "policy": pages[-1].policy,
                "dry_run": dry_run,
                "items": [item.to_json() for item in items],
                "bytes": total,
                "problems": problems,
            }
        )
    else:
        _print_cleanup(pages[-1], items, total, dry_run=dry_run)
        for problem in problems:
            typer.echo(f"problem: {problem}", err=True)


def _print_cleanup(page: CleanupPage, items: list[CleanupItem], total: int, *, dry_run: bool) -> None:
    from rich.filesize import decimal

    from service.cli import output
    from service.cli.tables import Column, Cut

    screen = output.console()
    given = {what: days for what, days in page.policy.items() if days is not None}
    if not given:
        screen.print("everything is kept: no SYNCBN_RETENTION_…_DAYS is set")
        return
    policy = ", ".join(f"{output.clean(what)} after {days:g} d" for what, days in given.items())
    screen.print(f"policy: {policy}", style="dim")
    if items:
        name = Column(name="NAME", worth=-1, least=8, cut=Cut.MIDDLE)
        screen.print(output.table(["WHAT", "JOB", name, "SIZE"], map(_row, items)))
    screen.print(f"{'would free' if dry_run else 'freed'} {decimal(total)} in {len(items)} parts")


def _row(item: CleanupItem) -> list[Cell]:
    from rich.filesize import decimal

    from service.cli.output import clean

    return [clean(item.what), item.job or (item.code or "")[:12], clean(item.name or ""), decimal(item.bytes)]


def _age(text: str) -> timedelta:
    from training.spec import seconds_of

    try:
        if (seconds := seconds_of(text)) is not None:
            return timedelta(seconds=seconds)
    except (ValueError, OverflowError):
        pass
    raise typer.BadParameter(f"write an age, as 12h or 30d, not {text!r}", param_hint="--older-than")
