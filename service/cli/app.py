"""The `syncbn` command: its global options and the table of its commands.

Heavy modules are imported only when a command runs, so that `syncbn --help` is fast.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

from service.cli import (
    advise,
    again,
    checkpoints,
    cluster,
    compare,
    control,
    delete,
    doctor,
    events,
    job_list,
    jobs,
    keys,
    report,
    results,
    secrets,
    submit,
    sweep,
    top,
    train,
    up,
    verify,
    webhooks,
)
from service.cli.hints import Commands
from service.cli.options import DEFAULT_URL, Connection
from service.cli.specs import SpecCommand

_EPILOG = (
    "Exit codes: 0 success, or the job succeeded; 1 the job failed, or `doctor` found a fault; 2 wrong "
    "usage, or the server refused the request; 3 the job was cancelled; 4 no such job; 5 the server cannot "
    "be reached, or cannot answer now; 124 `wait --timeout` expired; 130 interrupted."
)

app = typer.Typer(
    name="syncbn",
    help="Train networks with batch normalisation: the result does not depend on the number of devices.",
    epilog=_EPILOG,
    no_args_is_help=True,
    cls=Commands,
    pretty_exceptions_enable=False,  # their tracebacks print local variables, including the API key
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"syncbn {version('syncbn')}")
        raise typer.Exit


@app.callback()
def _connection(
    ctx: typer.Context,
    url: Annotated[
        str, typer.Option(envvar="SYNCBN_URL", help="Address of the server. Give it before the command.")
    ] = DEFAULT_URL,
    api_key: Annotated[
        str | None,
        typer.Option(
            envvar="SYNCBN_API_KEY",
            show_default=False,
            help="The server's API key, if it requires one. Give it before the command.",
        ),
    ] = None,
    version: Annotated[  # noqa: ARG001 - its callback does the work
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    ctx.obj = Connection(url=url, api_key=api_key)


_COMMANDS: dict[str, dict[str, Callable[..., None]]] = {
    "Run jobs": {
        "submit": submit.submit,
        "validate": submit.validate,
        "sweep": sweep.sweep,
        "extend": again.extend,
        "clone": again.clone,
        "cancel": control.cancel,
        "pause": control.pause,
        "resume": control.resume,
        "resize": control.resize,
        "retry": control.retry,
        "priority": control.priority,
        "delete": delete.delete,
        "wait": jobs.wait,
        "train": train.train,
        "verify": verify.verify,
        "advise": advise.advise,
    },
    "See jobs": {
        "list": job_list.list_jobs,
        "sweeps": sweep.sweeps,
        "show": jobs.show,
        "logs": results.logs,
        "events": events.events,
        "metrics": results.metrics,
        "compare": compare.compare,
        "report": report.report,
        "checkpoints": checkpoints.checkpoints,
        "files": checkpoints.files,
        "download": checkpoints.download,
    },
    "The service": {
        "up": up.up,
        "down": up.down,
        "serve": up.serve,
        "migrate": up.migrate,
        "ready": cluster.ready,
        "doctor": doctor.doctor,
        "top": top.top,
        "queue": cluster.queue,
        "cluster": cluster.cluster,
        "cleanup": delete.cleanup,
        "audit": keys.audit,
        "schema": submit.schema,
    },
}
for _panel, _commands in _COMMANDS.items():
    for _name, _command in _commands.items():
        _kind = SpecCommand if _name in {"submit", "validate", "sweep", "train", "verify"} else None
        app.command(_name, cls=_kind, rich_help_panel=_panel)(_command)
app.add_typer(webhooks.app, name="webhooks", rich_help_panel="The service")
app.add_typer(secrets.app, name="secrets", rich_help_panel="The service")
app.add_typer(keys.app, name="keys", rich_help_panel="The service")


def main() -> None:
    """Runs the console script and exits with one of the exit codes above."""
    app()
