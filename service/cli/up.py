"""`up`: the whole service on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def up(
    data_dir: Annotated[
        Path, typer.Option(metavar="DIR", help="Where everything is kept: database, results, logs.")
    ] = Path("syncbn-data"),
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the API.")] = 8000,
    mlflow_port: Annotated[int, typer.Option(min=1, max=65535, help="Port of MLflow.")] = 5000,
) -> None:
    """Start the whole service on this machine; Ctrl-C ends it."""
    from service.stack import run

    raise typer.Exit(run(data_dir=data_dir, host=host, port=port, mlflow_port=mlflow_port))
