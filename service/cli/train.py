"""`train`: runs one spec on this machine, without a service."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from service.cli.options import Assignments, CodeDirectory, SpecFile
from service.cli.session import reporting


def train(
    spec: SpecFile,
    assignments: Assignments = None,
    code: CodeDirectory = None,
    output: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder for checkpoints, metrics and the model.")
    ] = Path("output"),
) -> None:
    """Run a spec on this machine, without a service."""
    from service.cli.submit import read_spec
    from training.spec import parse_spec

    with reporting():
        parsed = parse_spec(read_spec(spec, assignments))
        from training.host.local import train_locally

        raise typer.Exit(train_locally(parsed, code=code, output=output))
