"""`keys create`, `keys list`, `keys revoke`: API keys. `audit`: who changed what."""

from __future__ import annotations

import enum
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from service.cli.options import AsJson
from service.cli.selection import Since, moment
from service.cli.session import session
from service.cli.times import date

if TYPE_CHECKING:
    from service.client.access import AuditEntry

app = typer.Typer(no_args_is_help=True, help="Make, list and revoke API keys. Needs the scope admin.")


class Scope(enum.StrEnum):
    """What a key allows; each scope includes those before it."""

    READ = "read"
    SUBMIT = "submit"
    ADMIN = "admin"


@app.command("create")
def create_key(
    ctx: typer.Context,
    user: Annotated[str, typer.Argument(metavar="USER", help="Whose name is on the key's jobs.")],
    scope: Annotated[
        Scope,
        typer.Option(
            help="read: see everything. submit: also submit jobs, and steer those of USER. admin: everything."
        ),
    ],
    expires: Annotated[
        str | None,
        typer.Option(
            metavar="TIME", help="When it ends: in 90d or 12h, or a time in ISO 8601. By default never."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make a key. It is shown once, on standard output, and cannot be shown again."""
    expires_at = None if expires is None else _end(expires)
    with session(ctx, as_json=as_json) as client:
        made = client.create_key(user, scope.value, expires_at=expires_at)
    if as_json:
        from service.cli.output import print_json

        print_json(made.to_json())
    else:
        typer.echo(made.key)
        end = "never" if made.expires_at is None else date(made.expires_at)
        typer.echo(
            f"key {made.id} of {made.user}, scope {made.scope}, ends: {end}. Use it as SYNCBN_API_KEY; it is "
            "not shown again",
            err=True,
        )


@app.command("list")
def list_keys(ctx: typer.Context, as_json: AsJson = False) -> None:
    """List all keys, newest first, also those that have ended."""
    from service.cli import output
    from service.cli.tables import Column

    with session(ctx, as_json=as_json) as client:
        keys = client.api_keys()
    if as_json:
        output.print_json([key.to_json() for key in keys])
    elif keys:
        rows = [
            (
                key.id,
                output.clean(key.user),
                key.scope,
                date(key.created_at),
                "revoked" if key.revoked_at else date(key.expires_at) or "never",
                date(key.last_used_at) or "never",
            )
            for key in keys
        ]
        columns: list[str | Column] = [
            "ID",
            Column(name="USER", least=10),
            "SCOPE",
            Column(name="CREATED", worth=-2),
            "ENDS",
            Column(name="LAST USED", worth=-1),
        ]
        output.console().print(output.table(columns, rows))
    else:
        output.console().print("no keys")


@app.command("revoke")
def revoke_key(
    ctx: typer.Context,
    key_id: Annotated[str, typer.Argument(metavar="ID", help="The key's id.")],
    as_json: AsJson = False,
) -> None:
    """Revoke a key: from now on it opens nothing. Its jobs go on."""
    with session(ctx, as_json=as_json) as client:
        revoked = client.revoke_key(key_id)
    if as_json:
        from service.cli.output import print_json

        print_json(revoked.to_json())
    else:
        typer.echo(f"revoked {revoked.id} of {revoked.user}")


def audit(
    ctx: typer.Context,
    user: Annotated[str | None, typer.Option(metavar="NAME", help="Only what this user did.")] = None,
    about: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Only about this id, or paths with this text.")
    ] = None,
    since: Since = None,
    limit: Annotated[int, typer.Option(min=1, help="Maximum number to list.")] = 50,
    as_json: AsJson = False,
) -> None:
    """Show who changed what or was refused, and from where, newest first. Needs the scope admin."""
    from service.cli import output
    from service.cli.tables import Column, Cut

    begin = None if since is None else moment(since)
    with session(ctx, as_json=as_json) as client:
        entries = list(client.audit(user=user, about=about, since=begin, limit=limit))
    if as_json:
        output.print_json([entry.to_json() for entry in entries])
    elif entries:
        rows = [
            (
                date(entry.at),
                output.clean(entry.who) or "(unknown)",
                output.clean(entry.address),
                output.clean(entry.action.partition(" ")[0]),
                output.clean(entry.about),
                _result(entry),
            )
            for entry in entries
        ]
        columns = [
            Column(name="AT", worth=3),
            Column(name="WHO", worth=2, least=8),
            Column(name="FROM", worth=-1, least=9),
            Column(name="ACTION", worth=2),
            Column(name="ABOUT", worth=2, least=12, cut=Cut.MIDDLE),
            Column(name="RESULT", worth=1),
        ]
        output.console().print(output.table(columns, rows))
    else:
        output.console().print("nothing was changed")


def _result(entry: AuditEntry) -> str:
    times = f" ({entry.count} times)" if entry.count > 1 else ""
    return f"{entry.result} {entry.status or ''}".strip() + times


def _end(text: str) -> datetime:
    from training.spec import seconds_of

    try:
        if (seconds := seconds_of(text)) is not None:
            return datetime.now(UTC) + timedelta(seconds=seconds)
        return datetime.fromisoformat(text.strip()).astimezone()
    except (ValueError, OverflowError):
        raise typer.BadParameter(
            f"write how long it lasts, as 90d or 12h, or a time, as 2026-12-31, not {text!r}",
            param_hint="--expires",
        ) from None
