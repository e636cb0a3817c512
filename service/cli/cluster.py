"""`queue`, `cluster`: what waits, and the machines."""

from __future__ import annotations

import typer

from service.cli.options import AsJson
from service.cli.session import session


def queue(ctx: typer.Context, as_json: AsJson = False) -> None:
    """Show the jobs that wait, in order, and what each waits for."""
    with session(ctx, as_json=as_json) as client:
        answer = client.queue()
    _ = answer
    if as_json:
        from service.cli.output import print_json

        print_json(answer)


def cluster(ctx: typer.Context, as_json: AsJson = False) -> None:
    """Show the machines and what is free on them."""
    with session(ctx, as_json=as_json) as client:
        answer = client.cluster()
    if as_json:
        from service.cli.output import print_json

        print_json(answer)
