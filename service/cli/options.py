"""Options that several commands share, and the exit codes. Imports nothing but typer."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer

DEFAULT_URL = "http://127.0.0.1:8000"


class ExitCode(enum.IntEnum):
    OK = 0
    JOB_FAILED = 1
    REFUSED = 2
    JOB_CANCELLED = 3
    NO_SUCH_JOB = 4
    UNREACHABLE = 5
    TIMED_OUT = 124
    INTERRUPTED = 130


@dataclass(frozen=True, kw_only=True)
class Connection:
    """Which server the commands talk to."""

    url: str
    api_key: str | None = field(repr=False)


AsJson = Annotated[bool, typer.Option("--json", help="Machine-readable output on stdout.")]
JobId = Annotated[str, typer.Argument(metavar="ID", help="The job's id.")]
SpecFile = Annotated[str, typer.Argument(metavar="SPEC", help="A YAML or JSON file; - is standard input.")]
Assignments = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY.PATH=VALUE", help="Change a value of the spec; may be repeated."),
]
CodeDirectory = Annotated[
    Path | None, typer.Option("--code", metavar="DIR", help="Your own modules, found by their class paths.")
]
