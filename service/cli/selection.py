"""The options that choose jobs: by state, name, experiment, label and age; and jobs by id or name."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from service.client import Client, Job

States = Annotated[
    list[str] | None,
    typer.Option("--state", metavar="STATE", help="Only jobs in this state; may be repeated."),
]
Experiment = Annotated[
    str | None, typer.Option(metavar="NAME", help="Only jobs whose spec has this tracking.experiment.")
]
Labels = Annotated[
    list[str] | None,
    typer.Option("--label", metavar="KEY=VALUE", help="Only jobs with this label; may be repeated."),
]
OfSweep = Annotated[str | None, typer.Option("--sweep", metavar="ID", help="Only jobs of this sweep.")]
OfUser = Annotated[
    str | None, typer.Option("--user", metavar="NAME", help="Only jobs of this user's API keys.")
]
Since = Annotated[
    str | None,
    typer.Option(
        metavar="TIME", help="Only jobs created since: an age, as 30m, 2h or 3d, or a time in ISO 8601."
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
        "states": states or [],
        "experiment": experiment,
        "labels": dict(map(_label, labels or [])),
        "since": None if since is None else moment(since),
        "sweep": sweep,
        "user": user,
    }


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
    oldest first. Raises ClientError for a reference that no job or more than one id matches.
    """
    if not references:
        newest = list(client.jobs(limit=limit + 1, **filters))
        return newest[:limit][::-1], len(newest) > limit
    found = {job.id: job for each in references for job in _named(client, each, filters, limit + 1)}
    return list(found.values())[-limit:], len(found) > limit


def _named(client: Client, reference: str, filters: dict[str, Any], limit: int) -> list[Job]:
    from service.client import ClientError, NotFound

    if jobs := list(client.jobs(name=reference, limit=limit, **filters)):
        return jobs[::-1]
    jobs = list(client.jobs(id_prefix=reference, limit=2, **filters))
    if len(jobs) > 1:
        raise ClientError(
            f"{reference!r} begins more than one id, as {jobs[0].id} and {jobs[1].id}: write more of it"
        )
    if not jobs:
        which = " that matches the other options" if any(filters.values()) else ""
        raise NotFound(
            404, {"title": "Not Found", "detail": f"no job with the id or name {reference!r}{which}"}
        )
    return jobs
