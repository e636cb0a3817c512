"""The programs that pods and containers start: most of them in this process, to import MLflow once."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path

import click.testing
import typer.testing

from service.cli.app import app


def check_line(line: list[str]) -> None:
    """Raises for a line with a command or an option that its program does not know."""
    name, *words = line
    program = Path(sys.executable).with_name(name)
    assert program.exists()
    words.append("--help")  # before it helps, it reads the line to its end
    if name == "syncbn":
        done = typer.testing.CliRunner().invoke(app, words)
        assert done.exit_code == 0, done.output
    elif name == "mlflow":
        _check_line_of_mlflow(words)
    else:
        subprocess.run([program, *words], check=True, capture_output=True, timeout=120)


def _check_line_of_mlflow(words: list[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own
        from mlflow.cli import cli
    done = click.testing.CliRunner().invoke(cli, words)
    assert done.exit_code == 0, done.output
