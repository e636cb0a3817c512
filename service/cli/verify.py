"""`verify`: what the number of workers does to a training, seen on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from service.cli.options import Assignments, CodeDirectory, ExitCode, SpecFile
from service.cli.session import reporting

if TYPE_CHECKING:
    from training.verify import Verification


def verify(
    spec: SpecFile,
    assignments: Assignments = None,
    code: CodeDirectory = None,
    workers: Annotated[
        str,
        typer.Option(metavar="N,N,...", help="Numbers of workers; the first is what others are compared to."),
    ] = "1,2,3",
    steps: Annotated[int, typer.Option(min=1, metavar="N", help="Optimizer steps of each run.")] = 50,
    output: Annotated[Path, typer.Option(metavar="DIR", help="Where curves and the figure go.")] = Path(
        "verify"
    ),
) -> None:
    """Show that the number of workers does not change a spec's loss curve, and what it does to BatchNorm.

    Trains for some steps on each number of workers, with sync_batch_norm and with batch_norm, and once more
    from weights that differ in their last bit, which shows how far rounding goes: a table, and a figure. Exit
    code 1 if the curves of sync_batch_norm differ by more than rounding.
    """
    from rich.console import Console

    from service.cli.submit import read_spec
    from training.spec import parse_spec

    with reporting():
        numbers = _numbers(workers)
        parsed = parse_spec(read_spec(spec, assignments))
        from training import verify as verification
        from training.errors import BuildError, TrainingError

        said = Console(stderr=True, highlight=False)
        try:
            found = verification.verify(
                parsed,
                workers=numbers,
                steps=steps,
                code=code,
                output=output,
                running=lambda text: said.print(text, markup=False),
            )
        except TrainingError as error:
            typer.echo(f"error: {error}", err=True)
            code_of_error = ExitCode.REFUSED if isinstance(error, BuildError) else ExitCode.JOB_FAILED
            raise typer.Exit(code_of_error) from None
    _show(found, output / "verify.png")
    raise typer.Exit(ExitCode.OK if found.holds else ExitCode.JOB_FAILED)


def _numbers(text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",")]
    if len(parts) < 2 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise typer.BadParameter(
            f"{text!r}: give at least two numbers of workers, as in 1,2,3", param_hint="--workers"
        )
    return list(dict.fromkeys(map(int, parts)))


def _show(found: Verification, figure: Path) -> None:
    from rich.table import Table

    from service.cli.output import console

    first = found.curves[0].workers
    table = Table("normalisation", "workers", f"largest difference to {first}", "at the last step", box=None)
    for curve in found.curves:
        if curve.workers != first:
            differences = found.differences(curve)
            table.add_row(curve.kind, str(curve.workers), f"{max(differences):.1e}", f"{differences[-1]:.1e}")
    out = console()
    if found.last_bit is not None:
        differences = found.differences(found.last_bit)
        what = "weights changed in the last bit"
        table.add_row(what, str(first), f"{max(differences):.1e}", f"{differences[-1]:.1e}")
    out.print(table)
    out.print(f"{_verdict(found)}; figure: {figure}")


def _verdict(found: Verification) -> str:
    if found.bound is None:
        return f"{found.precision}: how much is rounding is not known"
    if not found.holds:
        return f"sync_batch_norm: apart by more than rounding ({found.bound:g}, or what it grows to)"
    if found.largest <= found.bound:
        return f"sync_batch_norm: equal to rounding ({found.bound:g}), on any of these numbers of workers"
    return (
        "sync_batch_norm: equal to rounding, on any of these numbers of workers; this training makes "
        "rounding grow, as it does a change in the last bit of its first weights. With --set "
        "training.precision=64-true it starts nine digits lower"
    )
