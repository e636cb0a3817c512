"""`python -m benchmarks [NAME …] [--repeats N] [--quick]`: measures, prints, writes benchmarks/results.

What was started is ended, also after an error or a signal. The exit code is 0, or 130 when interrupted.
"""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
from collections.abc import Sequence
from importlib import import_module

from benchmarks import machine
from benchmarks.result import Options, Result, write
from service.cli.output import console, table

BENCHMARKS = {
    "startup": "from a job's submission to its first step and its end, against bare Ray",
    "tracking": "steps per second with every step's metrics in MLflow",
}
"""Each is a module of this package with `measure(Options) -> Result`."""


def main(arguments: Sequence[str]) -> int:
    asked = _parser().parse_args(arguments)
    options = Options(repeats=asked.repeats or (1 if asked.quick else 3), quick=asked.quick)
    command = shlex.join(["python", "-m", "benchmarks", *arguments])
    for name in asked.names or BENCHMARKS:
        facts = machine.describe()
        result: Result = import_module(f"benchmarks.{name}").measure(options)
        _print(result)
        if not options.quick:
            write(name, result, command=command, machine=facts)
    return 0


def _parser() -> argparse.ArgumentParser:
    known = "\n".join(f"  {name:10}{what}" for name, what in BENCHMARKS.items())
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=f"Measures; all benchmarks, or those named:\n{known}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", type=_known, help="a benchmark")
    parser.add_argument("--repeats", type=_positive, help="runs of each contestant (3; 1 with --quick)")
    parser.add_argument("--quick", action="store_true", help="show that it works; writes no files")
    return parser


def _known(name: str) -> str:
    if name not in BENCHMARKS:
        raise argparse.ArgumentTypeError(f"expected one of {', '.join(BENCHMARKS)}, got {name}")
    return name


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a number from 1 on, got {text}")
    return int(text)


def _print(result: Result) -> None:
    out = console()
    out.print(f"\n{result.title}\n")
    out.print(table(result.columns, result.rows))
    for note in result.notes:
        out.print(f"- {note}")


def _interrupt(_number: int, _frame: object) -> None:
    """Ends with all that was started; a second signal must not disturb that."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


if __name__ == "__main__":
    for _number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(_number, _interrupt)
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
