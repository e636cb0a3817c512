"""`up`, `down`: the whole service on this machine. `serve`, `migrate`: one part of it in a cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from service.roles import Role

DataDir = Annotated[
    Path, typer.Option(metavar="DIR", help="Folder that holds everything: database, results, logs.")
]


def up(
    data_dir: DataDir = Path("syncbn-data"),
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the API.")] = 8000,
    mlflow_port: Annotated[int, typer.Option(min=1, max=65535, help="Port of MLflow.")] = 5000,
) -> None:
    """Start the whole service on this machine. Ctrl-C stops it."""
    from service.embedded.stack import run

    raise typer.Exit(run(data_dir=data_dir, host=host, port=port, mlflow_port=mlflow_port))


def serve(
    role: Annotated[
        Role,
        typer.Option(
            help="Which part to run: `api` needs neither Ray nor torch; `scheduler` runs on a node of the "
            "Ray cluster. Several schedulers may run: one is active, the others stand by."
        ),
    ] = Role.BOTH,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the API.")] = 8000,
) -> None:
    """Run the API, the scheduler or both. SYNCBN_* variables locate the database, Ray and MLflow."""
    from service.server import serve

    raise typer.Exit(serve(role=role, host=host, port=port))


def migrate() -> None:
    """Create or update the tables of the database in SYNCBN_DATABASE_URL."""
    from service.server import migrate

    raise typer.Exit(migrate())


def down(
    data_dir: DataDir = Path("syncbn-data"),
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing.")] = False,
) -> None:
    """Stop the service that `up` started on a folder, or the processes left of it."""
    from service.embedded.stack import down

    stopped = down(data_dir=data_dir)
    if not quiet:
        typer.echo("stopped" if stopped else f"nothing runs on {data_dir}")
