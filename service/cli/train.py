"""`train`: runs one spec on this machine, without a service."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from service.cli.options import Assignments, CodeDirectory, Configs, Overrides, ScriptArguments, SpecFile
from service.cli.scripts import code_of
from service.cli.session import reporting


def train(
    spec: SpecFile = None,
    arguments: ScriptArguments = None,
    configs: Configs = None,
    overrides: Overrides = None,
    assignments: Assignments = None,
    code: CodeDirectory = None,
    output: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder for checkpoints, metrics and the model.")
    ] = Path("output"),
) -> None:
    """Run a spec or a script on this machine, without a service."""
    from service.cli.specs import read_spec

    with reporting():
        code = code_of(spec, code)
        parsed = read_spec(spec, assignments, configs, overrides, code, arguments)
        from training.host.local import train_locally

        raise typer.Exit(train_locally(parsed, code=code, output=output))
