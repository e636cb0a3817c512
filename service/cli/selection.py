"""The options that choose jobs: by state, name, experiment, label and age; and jobs by id or name."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer

from service.cli import completion

if TYPE_CHECKING:
    from service.client import Client, Job

States = Annotated[
    list[str] | None,
    typer.Option(
        "--state",
        metavar="STATE[,STATE]",
        help="Only jobs in one of these states; may be repeated.",
        autocompletion=completion.state,
    ),
]
Name = Annotated[
    str | None,
    typer.Option(
        "--name", help="Only jobs with this name, in which * stands for any text and ? for one character."
    ),
]
Experiment = Annotated[
    str | None, typer.Option(metavar="NAME", help="Only jobs whose spec has this tracking.experiment.")
]
Labels = Annotated[
    list[str] | None,
    typer.Option("--label", metavar="KEY=VALUE", help="Only jobs with this label; may be repeated."),
]
OfSweep = Annotated[
    str | None,
    typer.Option(
        "--sweep",
        metavar="SWEEP",
        help="Only jobs of this sweep, by its id or name.",
        autocompletion=completion.sweep,
    ),
]
OfUser = Annotated[
    str | None, typer.Option("--user", metavar="NAME", help="Only jobs of this user's API keys.")
]
Since = Annotated[
    str | None,
    typer.Option(
        metavar="TIME", help="Only jobs created since: an age, as 30m, 2h or 3d, or a date or time."
    ),
]
Order = Annotated[
    str | None,
    typer.Option(
        metavar="ORDER",
        help="oldest, name, ended (the jobs that ended last) or longest (the ended jobs that took longest).",
        show_default="newest first",
    ),
]


def filters(
    states: list[str] | None,
    experiment: str | None,
    labels: list[str] | None,
    since: str | None,
    sweep: str | None,
    user: str | None = None,
) -> dict[str, Any]:
    """Returns the options as arguments of `Client.jobs`. Raises typer.BadParameter."""
    return {
        "states": [part.strip() for text in states or [] for part in text.split(",")],
        "experiment": experiment,
        "labels": dict(map(_label, labels or [])),
        "since": None if since is None else moment(since),
        "sweep": sweep,
        "user": user,
    }


def resolved(client: Client, filters: dict[str, Any]) -> dict[str, Any]:
    """Returns the filters with the id of the sweep that is meant. Raises RequestError."""
    from service.cli.references import sweep_id

    sweep = filters.get("sweep")
    return filters if sweep is None else filters | {"sweep": sweep_id(client, sweep)}


def _label(text: str) -> tuple[str, str]:
    key, separator, value = text.partition("=")
    if ":" in key:  # KEY:VALUE, as the REST API writes it
        key, separator, value = text.partition(":")
    if not key or not separator:
        raise typer.BadParameter(f"write KEY=VALUE, not {text!r}", param_hint="--label")
    return key, value


def moment(text: str) -> datetime:
    """Returns the time, with a time zone: that of this machine if `text` has none."""
    from training.spec import seconds_of

    try:
        if (age := seconds_of(text)) is not None:
            return datetime.now(UTC) - timedelta(seconds=age)
        return datetime.fromisoformat(text.strip()).astimezone()
    except (ValueError, OverflowError):
        raise typer.BadParameter(
            f"write an age, as 30m, 2h or 3d, or a time, as 2026-01-31 or 2026-01-31T08:00, not {text!r}",
            param_hint="--since",
        ) from None


def chosen(
    client: Client, references: list[str], filters: dict[str, Any], *, limit: int
) -> tuple[list[Job], bool]:
    """Returns at most `limit` jobs that `references` name and that match all filters, and whether more do.

    Each comes once, in the order of the references; those of one name oldest first. references: ids, unique
    beginnings of ids, or names, of which each may name several jobs; none: all jobs, the newest of them,
    oldest first. Raises RequestError for a reference that no job or more than one id matches.
    """
    if not references:
        newest = list(client.jobs(limit=limit + 1, **filters))
        return newest[:limit][::-1], len(newest) > limit
    found = {job.id: job for each in references for job in _named(client, each, filters, limit + 1)}
    return list(found.values())[-limit:], len(found) > limit


def _named(client: Client, reference: str, filters: dict[str, Any], limit: int) -> list[Job]:
    """Returns the jobs of a name, or the one job whose id begins so. Raises RequestError."""
    from service.cli.references import ambiguous, jobs_named, not_found

    jobs = jobs_named(client, reference, filters, limit)
    by_id = [job for job in jobs if job.id.startswith(reference)]
    if not jobs:
        raise not_found(reference, "job", " that matches the other options" if any(filters.values()) else "")
    if by_id and len(jobs) > 1:
        raise ambiguous(reference, jobs)
    return jobs[::-1]
