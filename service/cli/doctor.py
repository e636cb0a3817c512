"""`doctor`: what is wrong with the service, and what to do."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from service.cli.options import AsJson, Connection, ExitCode
from service.cli.session import report

if TYPE_CHECKING:
    from service.doctor.finding import Finding

_LEVEL_WIDTH = 8
_COLOURS = {"ok": "green", "warning": "yellow", "fault": "red"}


def doctor(
    ctx: typer.Context,
    data_dir: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            show_default=False,
            help="Folder of `syncbn up`. By default syncbn-data, if it is here; otherwise the service that "
            "the SYNCBN_* variables of this shell name.",
        ),
    ] = None,
    seconds: Annotated[
        float, typer.Option("--timeout", min=1, help="Seconds that each check may take.")
    ] = 30.0,
    as_json: AsJson = False,
) -> None:
    """Examine the service and this machine: what is wrong, and what to do. Exit code 1 if there is a fault.

    Works with and without a running server. Run it where the scheduler runs, to see Ray and its machines.
    """
    from service.cli import output
    from service.doctor.diagnosis import checks
    from service.doctor.examine import examine
    from service.embedded.patient import patient
    from service.errors import Refused

    connection: Connection = ctx.obj
    try:
        subject = patient(data_dir)
    except Refused as error:
        report({"title": "Refused", "detail": str(error)}, as_json=as_json)
        raise typer.Exit(ExitCode.REFUSED) from None
    if not as_json:
        output.console().print(f"examining {subject.described}")
    findings = []
    for finding in examine(checks(subject, connection.url, connection.api_key, seconds)):
        findings.append(finding)
        if not as_json:
            _print(finding)
    faults = sum(finding.level == "fault" for finding in findings)
    warnings = sum(finding.level == "warning" for finding in findings)
    if as_json:
        output.print_json({"healthy": not faults, "findings": [finding.to_json() for finding in findings]})
    else:
        typer.echo(f"{_count(faults, 'fault')}, {_count(warnings, 'warning')}")
    raise typer.Exit(ExitCode.FAULT if faults else ExitCode.OK)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _print(finding: Finding) -> None:
    """Prints a finding; what does not fit in a line goes on below its beginning."""
    from rich.table import Table
    from rich.text import Text

    from service.cli import output

    style = f"{'bold ' if finding.level == 'fault' else ''}{_COLOURS[finding.level]}"
    grid = Table.grid(padding=(0, 1))
    grid.add_column(no_wrap=True, width=_LEVEL_WIDTH)
    grid.add_column(overflow="fold")
    grid.add_row(Text(finding.level, style), f"{finding.about}: {output.clean(finding.message)}")
    if finding.advice:
        grid.add_row("", f"→ {output.clean(finding.advice)}")
    output.console().print(grid)
