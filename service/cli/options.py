"""The options that several commands share, and the exit codes. Imports nothing heavy."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer

from service.cli import completion

DEFAULT_URL = "http://127.0.0.1:8000"


class ExitCode(enum.IntEnum):
    """The exit codes of the command line."""

    OK = 0
    JOB_FAILED = 1
    FAULT = 1  # of `doctor`
    REFUSED = 2
    JOB_CANCELLED = 3
    NO_SUCH_JOB = 4
    UNREACHABLE = 5
    TIMED_OUT = 124
    INTERRUPTED = 130


@dataclass(frozen=True, kw_only=True)
class Connection:
    """The server that the commands talk to. `api_key` is None if it requires none."""

    url: str
    api_key: str | None = field(repr=False)


AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]
JobId = Annotated[
    str,
    typer.Argument(
        metavar="JOB",
        help="A job: its id, the beginning of its id, or its name.",
        autocompletion=completion.job,
    ),
]
JobOrSweepId = Annotated[
    str,
    typer.Argument(
        metavar="JOB",
        help="A job or a sweep: its id, the beginning of its id, or its name.",
        autocompletion=completion.job_or_sweep,
    ),
]
SpecFile = Annotated[
    str | None,
    typer.Argument(
        metavar="SPEC",
        show_default=False,
        help="A spec or a configuration of LightningCLI, a YAML or JSON file, or - for standard input; "
        "or a script, a .py file. "
        "--trainer.max_epochs=5, --model.lr=0.1 and --model package.Class override it as in LightningCLI.",
    ),
]
ScriptArguments = Annotated[
    list[str] | None,
    typer.Argument(metavar="-- ARGUMENT", show_default=False, help="The arguments of a script, after --."),
]
Configs = Annotated[
    list[Path] | None,
    typer.Option("--config", metavar="FILE", help="Another file; later ones win. May be repeated."),
]
Assignments = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY.PATH=VALUE", help="Set a value of the spec; may be repeated."),
]
Overrides = Annotated[list[str] | None, typer.Option("--override", hidden=True)]
Follow = Annotated[bool, typer.Option("--follow", "-f", help="Watch the job until it has ended.")]
Key = Annotated[
    str | None,
    typer.Option(metavar="IDEMPOTENCY_KEY", help="Submitting again with the same key gives the same job."),
]
CodeDirectory = Annotated[
    Path | None,
    typer.Option(
        "--code",
        metavar="DIR",
        help="Directory of your own modules, for class paths in the spec. Of a script: by default its own.",
    ),
]
