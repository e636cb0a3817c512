"""`python -m benchmarks [NAME …] [--repeats N] [--quick] [--before PATH]`: measures, prints, and writes
benchmarks/results and docs/explanation/figures.md.

What was started is ended, also after an error or a signal. The exit code is 0, or 130 when interrupted.
"""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path

from benchmarks import figures, machine
from benchmarks.result import Options, Result, as_text, write

BENCHMARKS = {
    "startup": "from a job's submission to its first step and its end, beside bare Ray; and `syncbn train`",
    "recovery": "from a rank's death to its step made again, beside Ray Train; pause, resume, resize",
    "verify": "seconds that `syncbn verify` takes, with --before beside an earlier version's",
    "head": "memory and CPU of a stack that idles, and of a running job beside its ranks, beside bare Ray",
    "answers": "how soon the API answers while jobs train, and while MLflow stands still",
    "logs": "a job that prints 100 MB: whether all of it is there, and what it costs, beside bare Ray",
    "tracking": "steps per second with every step's metrics in MLflow",
    "sync_bn": "the layer's time, memory and communication, against torch's and other schemes",
    "steps": "steps per second with checkpoints and tracking, against plain DDP under torchrun",
    "capacity": "what one API, one PostgreSQL, one scheduler and one MLflow carry",
    "samples_per_device": "test error of BatchNorm and SyncBatchNorm, the same batches on 1 to 16 devices",
}
"""Each is a module of this package with `measure(Options) -> Result`."""


def main(arguments: Sequence[str]) -> int:
    given = parser("python -m benchmarks", BENCHMARKS)
    given.add_argument("--before", type=_checkout, metavar="PATH", help="a checkout of an earlier version")
    asked = given.parse_args(arguments)
    command = shlex.join(["python", "-m", "benchmarks", *arguments])
    for name in asked.names or BENCHMARKS:
        options = replace(options_of(asked), before=asked.before)
        report(name, import_module(f"benchmarks.{name}").measure, options, command)
    if not asked.quick:
        figures.write()
    return 0


def parser(program: str, benchmarks: Mapping[str, str]) -> argparse.ArgumentParser:
    """For any of `benchmarks`, phrases by name."""

    def known(name: str) -> str:
        if name not in benchmarks:
            raise argparse.ArgumentTypeError(f"expected one of {', '.join(benchmarks)}, got {name}")
        return name

    width = max(map(len, benchmarks)) + 2
    phrases = "\n".join(f"  {name:{width}}{what}" for name, what in benchmarks.items())
    made = argparse.ArgumentParser(
        prog=program,
        description=f"Measures; all benchmarks, or those named:\n{phrases}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("names", nargs="*", metavar="NAME", type=known, help="a benchmark")
    made.add_argument("--repeats", type=_positive, help="runs of each contestant (3; 1 with --quick)")
    made.add_argument("--quick", action="store_true", help="show that it works; writes no files")
    return made


def options_of(asked: argparse.Namespace) -> Options:
    return Options(repeats=asked.repeats or (1 if asked.quick else 3), quick=asked.quick)


def report(name: str, measure: Callable[[Options], Result], options: Options, command: str) -> None:
    """Measures and prints; writes the files of `name` unless it is quick."""
    facts = machine.describe()
    result = measure(options)
    facts = {**facts, "load after": machine.load()}
    print(f"\n{as_text(result)}")
    if not options.quick:
        write(name, result, command=command, machine=facts)


def run(program: Callable[[Sequence[str]], int]) -> None:
    """Ends with the program's exit code; SIGINT and SIGTERM end it and what it started."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    try:
        sys.exit(program(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a number from 1 on, got {text}")
    return int(text)


def _checkout(text: str) -> Path:
    path = Path(text).resolve()
    if not (path / "training").is_dir():
        raise argparse.ArgumentTypeError(f"expected a checkout of this project, got {text}")
    layer = path / "sync_bn"
    if (layer / "_kernels.cpp").exists() and not list(layer.glob("_kernels*.so")):
        # It would run without them, several times slower than it was.
        build = "python -c 'import setuptools; setuptools.setup()' build_ext --inplace"
        raise argparse.ArgumentTypeError(f"{text} has no compiled kernels: run `{build}` in it first")
    return path


def _interrupt(_number: int, _frame: object) -> None:
    """Ends with all that was started; a second signal must not disturb that."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


if __name__ == "__main__":
    run(main)
