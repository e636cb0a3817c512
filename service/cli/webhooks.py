"""`webhooks add`, `list`, `remove`, `deliveries`, `test`: addresses that are told when jobs change."""

from __future__ import annotations

import json
import time
from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import typer

from service.cli.options import AsJson, ExitCode
from service.cli.selection import Labels, filters
from service.cli.session import session

if TYPE_CHECKING:
    from service.client import Client, Delivery

app = typer.Typer(no_args_is_help=True, help="Have addresses told when jobs change their state.")

WebhookId = Annotated[str, typer.Argument(metavar="ID", help="The webhook's id.")]
_SECONDS_TO_DELIVER = 30.0


@app.command("add")
def add(
    ctx: typer.Context,
    url: Annotated[str, typer.Argument(metavar="URL", help="Where to post: https://HOST/PATH.")],
    events: Annotated[
        str, typer.Option(metavar="STATE,STATE", help="Only when a job comes into one of these states.")
    ] = "",
    labels: Labels = None,
    as_json: AsJson = False,
) -> None:
    """Add a webhook, and print the secret that signs its messages. It is shown only now."""
    from service.cli.output import print_json

    states = [state.strip() for state in events.split(",") if state.strip()]
    chosen = filters(None, None, labels, None, None)["labels"]
    with session(ctx, as_json=as_json) as client:
        webhook = client.add_webhook(url, events=states, labels=chosen)
    if as_json:
        print_json(webhook.to_json())
        return
    typer.echo(f"added {webhook.id}")
    typer.echo(f"secret {webhook.secret}")
    typer.echo(f"try it: syncbn webhooks test {webhook.id}")


@app.command("list")
def list_webhooks(ctx: typer.Context, as_json: AsJson = False) -> None:
    """List all webhooks."""
    from service.cli import output
    from service.cli.tables import Column, Cut

    with session(ctx, as_json=as_json) as client:
        found = client.webhooks()
    if as_json:
        output.print_json([webhook.to_json() for webhook in found])
        return
    if not found:
        output.console().print("no webhook is set")
        return
    rows = [
        (
            webhook.id,
            output.clean(webhook.url),
            ", ".join(webhook.events) or "all",
            output.clean(", ".join(f"{key}={value}" for key, value in webhook.labels.items())),
        )
        for webhook in found
    ]
    columns = [
        Column(name="ID", worth=1),
        Column(name="URL", worth=1, least=20, cut=Cut.MIDDLE),
        Column(name="EVENTS", least=8),
        Column(name="LABELS", least=8),
    ]
    output.console().print(output.table(columns, rows))


@app.command("remove")
def remove(ctx: typer.Context, webhook_id: WebhookId, as_json: AsJson = False) -> None:
    """Remove a webhook. Nothing more is sent there."""
    with session(ctx, as_json=as_json) as client:
        client.remove_webhook(webhook_id)
    if as_json:
        from service.cli.output import print_json

        print_json({"id": webhook_id})
    else:
        typer.echo(f"removed {webhook_id}")


@app.command("deliveries")
def deliveries(
    ctx: typer.Context,
    webhook_id: WebhookId,
    limit: Annotated[int, typer.Option(min=1, help="Maximum number to list.")] = 20,
    as_json: AsJson = False,
) -> None:
    """List what was sent to a webhook and what is to be sent, newest first."""
    from service.cli import output
    from service.cli.tables import Column

    with session(ctx, as_json=as_json) as client:
        found = list(client.deliveries(webhook_id, limit=limit))
    if as_json:
        output.print_json([each.to_json() for each in found])
        return
    rows = [
        (
            each.message_id,
            _type(each),
            each.state,
            str(each.attempts),
            _next(each),
            output.clean(each.problem),
        )
        for each in found
    ]
    columns = [
        Column(name="MESSAGE", worth=1, least=12),
        Column(name="TYPE", worth=4),
        Column(name="STATE", worth=5),
        Column(name="ATTEMPTS", worth=2),
        Column(name="NEXT", worth=3),
        Column(name="PROBLEM", worth=4, least=16),
    ]
    output.console().print(output.table(columns, rows) if found else "nothing was sent yet")


@app.command("test")
def try_webhook(ctx: typer.Context, webhook_id: WebhookId, as_json: AsJson = False) -> None:
    """Send a test message, and say what the receiver answers. The exit code is 1 if it is not delivered."""
    from service.cli.output import clean, print_json

    with session(ctx, as_json=as_json) as client:
        delivery = _attempted(client, webhook_id, client.test_webhook(webhook_id))
    if as_json:
        print_json(delivery.to_json())
    elif delivery.state == "delivered":
        typer.echo(f"delivered: the receiver answered {delivery.status}")
    else:
        problem = delivery.problem or "no attempt yet: does a scheduler run?"
        typer.echo(f"not delivered: {clean(problem)}", err=True)
    if delivery.state != "delivered":
        raise typer.Exit(ExitCode.JOB_FAILED)


def _attempted(client: Client, webhook_id: str, delivery: Delivery) -> Delivery:
    """Waits until the delivery has succeeded or failed once, and returns it."""
    deadline = time.monotonic() + _SECONDS_TO_DELIVER
    while delivery.state == "pending" and not delivery.problem and time.monotonic() < deadline:
        time.sleep(0.2)
        found = client.deliveries(webhook_id, limit=100)
        delivery = next((each for each in found if each.id == delivery.id), delivery)
    return delivery


def _type(delivery: Delivery) -> str:
    return str(json.loads(delivery.body).get("type", ""))


def _next(delivery: Delivery) -> str:
    return _moment(delivery.next_at) if delivery.state == "pending" else ""


def _moment(time_: datetime) -> str:
    return time_.astimezone().strftime("%Y-%m-%d %H:%M:%S")
