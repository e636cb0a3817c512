"""`verify`: shows on this machine whether the number of workers changes a spec's loss curve, or its bits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from service.cli.options import Assignments, CodeDirectory, Configs, ExitCode, Overrides, SpecFile
from service.cli.scripts import code_of
from service.cli.session import reporting

if TYPE_CHECKING:
    from training.spec import Spec
    from training.verify import Verification
    from training.verify_bits import BitsVerification

_SHOWN = 16  # characters of a hash


def verify(
    spec: SpecFile = None,
    configs: Configs = None,
    overrides: Overrides = None,
    assignments: Assignments = None,
    code: CodeDirectory = None,
    workers: Annotated[
        str,
        typer.Option(metavar="N,N,...", help="Numbers of workers; the others are compared with the first."),
    ] = "1,2,3",
    steps: Annotated[int, typer.Option(min=1, metavar="N", help="Optimizer steps of each run.")] = 50,
    output: Annotated[Path, typer.Option(metavar="DIR", help="Folder for curves and the figure.")] = Path(
        "verify"
    ),
    bits: Annotated[
        bool,
        typer.Option(
            "--bits",
            help="Compare training.reproducible: bits, by hashes of weights and logged values, with curve.",
        ),
    ] = False,
) -> None:
    """Show that the number of workers does not change a spec's loss curve, unlike with plain BatchNorm.

    Trains for some steps on each number of workers, with sync_batch_norm and with batch_norm, and once more
    from weights that differ in their last bit, which shows the effect of rounding. Prints a table and draws a
    figure. Exit code 1 if the curves of sync_batch_norm differ by more than rounding.

    With --bits it trains with training.reproducible: bits on each number of workers, and with curve beside
    it. Exit code 1 if hashes of weights or of logged values differ with bits.
    """
    from service.cli.specs import read_spec

    if bits and steps < 2:
        raise typer.BadParameter(
            "--bits measures the time between steps; give at least 2", param_hint="--steps"
        )
    with reporting():
        numbers = _numbers(workers)
        parsed = read_spec(spec, assignments, configs, overrides, code_of(spec, code))
        if bits:
            holds = _verify_bits(parsed, workers=numbers, steps=steps, code=code, output=output)
        else:
            holds = _verify(parsed, workers=numbers, steps=steps, code=code, output=output)
    raise typer.Exit(ExitCode.OK if holds else ExitCode.JOB_FAILED)


def _verify(spec: Spec, *, output: Path, **how: Any) -> bool:
    from training import verify as verification

    with measuring() as running:
        result = verification.verify(spec, output=output, running=running, **how)
    _show(result, output / "verify.png")
    return result.holds


def _verify_bits(spec: Spec, *, output: Path, **how: Any) -> bool:
    from training import verify_bits as verification

    with measuring() as running:
        result = verification.verify_bits(spec, output=output, running=running, **how)
    _show_bits(result, output / "verify.png")
    return not result.different


@contextmanager
def measuring() -> Iterator[Callable[[str], None]]:
    """Yields what prints the progress of trainings on this machine; reports their errors and exits."""
    from rich.console import Console

    from training.errors import BuildError, TrainingError

    progress = Console(stderr=True, highlight=False)
    try:
        yield lambda text: progress.print(text, markup=False)
    except TrainingError as error:
        typer.echo(f"error: {error}", err=True)
        code = ExitCode.REFUSED if isinstance(error, BuildError) else ExitCode.JOB_FAILED
        raise typer.Exit(code) from None


def _numbers(text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",")]
    if len(parts) < 2 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise typer.BadParameter(
            f"{text!r}: give at least two numbers of workers, as in 1,2,3", param_hint="--workers"
        )
    return list(dict.fromkeys(map(int, parts)))


def _show(result: Verification, figure: Path) -> None:
    from rich.table import Table

    from service.cli.output import console

    first = result.curves[0].workers
    table = Table("normalisation", "workers", f"largest difference to {first}", "at the last step", box=None)
    for curve in result.curves:
        if curve.workers != first:
            differences = result.differences(curve)
            table.add_row(curve.kind, str(curve.workers), f"{max(differences):.1e}", f"{differences[-1]:.1e}")
    out = console()
    if result.last_bit is not None:
        differences = result.differences(result.last_bit)
        what = "weights changed in the last bit"
        table.add_row(what, str(first), f"{max(differences):.1e}", f"{differences[-1]:.1e}")
    out.print(table)
    out.print(f"{_verdict(result)}; figure: {figure}")


def _show_bits(result: BitsVerification, figure: Path) -> None:
    from rich.table import Table

    from service.cli.output import console

    usual = result.of("curve")
    table = Table(
        "workers",
        "weights",
        "logged values",
        "last loss",
        "s/step",
        f"curve: distance to {usual[0].workers}",
        "at the last step",
        "s/step",
        box=None,
    )
    for run, other in zip(result.of("bits"), usual, strict=True):
        distances = result.distances(other)
        table.add_row(
            str(run.workers),
            run.weights[:_SHOWN],
            run.logged[:_SHOWN],
            repr(run.train_loss[-1]),
            f"{run.seconds_per_step:.3g}",
            f"{max(distances):.1e}",
            f"{distances[-1]:.1e}",
            f"{other.seconds_per_step:.3g}",
        )
    out = console()
    out.print(table)
    out.print(f"{result.verdict}; figure: {figure}")


def _verdict(result: Verification) -> str:
    if result.bound is None:
        return f"{result.precision}: the size of rounding is not known"
    if result.differs_at_once:
        return (
            f"sync_batch_norm: differs by more than rounding ({result.bound:g}) from the first step on, so "
            "the loss itself depends on how the batch is split: it draws random numbers (dropout), or it is "
            "no mean over the samples (a masked mean, a sum, a ratio, pairs of samples). Divide by counts "
            "with sync_bn.global_mean: see Losses in docs/reference/lightning.md"
        )
    if not result.holds:
        return f"sync_batch_norm: differs by more than rounding ({result.bound:g}, or what it grows to)"
    if result.largest <= result.bound:
        return f"sync_batch_norm: equal up to rounding ({result.bound:g}), on any of these numbers of workers"
    return (
        "sync_batch_norm: equal up to rounding, on any of these numbers of workers; this training amplifies "
        "rounding as much as a change in the last bit of the initial weights. With --set "
        "training.precision=64-true rounding starts nine digits lower"
    )
