"""`secrets set`, `secrets list`, `secrets delete`: the secrets that jobs may name."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from service.cli.options import AsJson
from service.cli.session import session
from service.cli.times import date

app = typer.Typer(no_args_is_help=True, help="Set, list and delete the secrets that jobs may name.")

Name = Annotated[str, typer.Argument(metavar="NAME", help="The name of the environment variable.")]


@app.command("set")
def set_secret(ctx: typer.Context, name: Name, as_json: AsJson = False) -> None:
    """Set a secret. Its value is read from standard input, or asked for; it is never an argument."""
    if sys.stdin.isatty():
        value = typer.prompt(f"value of {name}", hide_input=True, err=True)
    else:
        try:
            value = sys.stdin.buffer.read().decode().removesuffix("\n")
        except UnicodeDecodeError:
            raise typer.BadParameter("the value on standard input is not text in UTF-8") from None
    with session(ctx, as_json=as_json) as client:
        client.set_secret(name, value)
    if as_json:
        from service.cli.output import print_json

        print_json({"name": name})
    else:
        typer.echo(f"set {name}")


@app.command("list")
def list_secrets(ctx: typer.Context, as_json: AsJson = False) -> None:
    """List the names of all secrets. No command shows a value."""
    from service.cli import output
    from service.cli.tables import Column

    with session(ctx, as_json=as_json) as client:
        secrets = client.secrets()
    if as_json:
        output.print_json([secret.to_json() for secret in secrets])
    elif secrets:
        rows = [(secret.name, secret.source, date(secret.updated_at)) for secret in secrets]
        output.console().print(output.table([Column(name="NAME", worth=1, least=12), "SOURCE", "SET"], rows))
    else:
        output.console().print("no secret is set")


@app.command("delete")
def delete_secret(ctx: typer.Context, name: Name, as_json: AsJson = False) -> None:
    """Delete a secret. Ranks that run keep it."""
    with session(ctx, as_json=as_json) as client:
        client.delete_secret(name)
    if as_json:
        from service.cli.output import print_json

        print_json({"name": name})
    else:
        typer.echo(f"deleted {name}")
