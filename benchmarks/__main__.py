"""Runs benchmarks: `python -m benchmarks [NAME …] [--repeats N] [--quick] [--before PATH]`.

Measures, prints, and writes benchmarks/results and docs/explanation/figures.md. Stops all processes that it
started, also after an error or a signal. The exit code is 0, or 130 when interrupted.
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
    "startup": "time from submission to first step and to end, and `syncbn train`; peer: bare Ray",
    "recovery": "time from a rank's death until its step is repeated; pause, resume, resize; peer: Ray Train",
    "verify": "duration of `syncbn verify`; with --before also an earlier version's",
    "head": "memory and CPU of an idle stack, and of a running job without its ranks; peer: bare Ray",
    "answers": "response times of the API while jobs train, and while MLflow is stopped",
    "logs": "a job that prints 100 MB: completeness of the log, and its cost; peer: bare Ray",
    "tracking": "steps per second with every step's metrics in MLflow",
    "sync_bn": "the layer's time, memory and communication, against torch's and other schemes",
    "steps": "steps per second with checkpoints and tracking, against plain DDP and an earlier version",
    "bits": "time of a step and memory with training.reproducible: bits, against the usual mode",
    "bits_accuracy": "accuracy over seeds with training.reproducible: bits, and in the usual mode",
    "noise": "time of a step with Dropout that draws by sample, against torch's own draws",
    "capacity": "the load that one API, one PostgreSQL, one scheduler and one MLflow carry",
    "queue": "submissions per second, lists of up to a million jobs, memory; peers: bare inserts, Ray Jobs",
    "estimates": "how far the estimated starts of waiting jobs are from the actual ones",
    "console": "first paint and size of the pages of the console with 10,000 jobs, cost of open pages",
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


def parser(program: str, benchmarks: Mapping[str, str], *, repeats: bool = True) -> argparse.ArgumentParser:
    """Returns the argument parser for `benchmarks`, a mapping of names to descriptions.

    repeats: whether the number of runs may be given.
    """

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
    if repeats:
        made.add_argument("--repeats", type=_positive, help="runs of each contestant (3; 1 with --quick)")
    made.add_argument("--quick", action="store_true", help="check that the benchmark works; writes no files")
    return made


def options_of(asked: argparse.Namespace) -> Options:
    return Options(repeats=asked.repeats or (1 if asked.quick else 3), quick=asked.quick)


def report(name: str, measure: Callable[[Options], Result], options: Options, command: str) -> None:
    """Measures, prints the result, and writes the files of `name` unless `options.quick`."""
    facts = machine.describe()
    result = measure(options)
    facts = {**facts, "load after": machine.load()}
    print(f"\n{as_text(result)}")
    if not options.quick:
        write(name, result, command=command, machine=facts)


def run(program: Callable[[Sequence[str]], int]) -> None:
    """Runs `program` and exits with its exit code. SIGINT and SIGTERM stop it and all that it started."""
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
        # Without them it would run, but several times slower than that version did.
        build = "python -c 'import setuptools; setuptools.setup()' build_ext --inplace"
        raise argparse.ArgumentTypeError(f"{text} has no compiled kernels: run `{build}` in it first")
    return path


def _interrupt(_number: int, _frame: object) -> None:
    """Interrupts the program. Ignores further signals, so that they do not disturb the clean-up."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


if __name__ == "__main__":
    run(main)
