"""Checks and measures the layer on a machine's GPUs: `make gpu-check`. Needs torch, Triton and pytest alone.

Runs the tests of Triton's kernels on a GPU, times the layer beside others, trains on two ranks, and writes
results/gpu.md and gpu.json, in under eight minutes on one GPU. The exit code is 1 if a test fails, or if
there is no GPU; then it writes nothing.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

import torch

from benchmarks.__main__ import report, run
from benchmarks.progress import progress
from benchmarks.result import Options, Result
from benchmarks.sync_bn import drawn_digits, gpu
from benchmarks.sync_bn.pools import pools

ROOT = Path(__file__).parent.parent
TESTS = ROOT / "tests" / "sync_bn"
AT_ONCE = (
    ("accuracy", "weights"),
    ("fused",),
    ("native", "function"),
    ("triton", "arithmetic"),
)
"""Files of tests that run in one process each, all at once: most of their time is for compiling kernels."""
SECONDS_FOR_TESTS = 240
COUNTS = ("tests", "failures", "errors", "skipped")
NO_GPU = "torch finds no GPU on this machine, so nothing was checked or measured."


def main(arguments: Sequence[str]) -> int:
    given = argparse.ArgumentParser(prog="python -m benchmarks.gpu_check", description=__doc__)
    given.add_argument("--quick", action="store_true", help="small inputs; writes no files")
    asked = given.parse_args(arguments)
    if not torch.cuda.is_available():
        sys.stderr.write(f"{NO_GPU}\n")
        return 1
    tests = run_tests()
    options = Options(repeats=1, quick=asked.quick)
    report("gpu", lambda options: measure(options, tests), options, "make gpu-check")
    return 0 if passed(tests) else 1


def measure(options: Options, tests: Result) -> Result:
    backend = "nccl" if torch.cuda.device_count() >= drawn_digits.WORLD_SIZE else "gloo"
    with pools() as ranks_of:
        parts = [tests, drawn_digits.measure("cuda", backend), gpu.measure(options, ranks_of)]
    return Result(title="The layer on GPUs", parts=parts)


def run_tests(keyword: str = "triton") -> Result:
    """Runs the tests that have `keyword` in their name, and prints the output of those that fail."""
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as folder, progress("tests", len(AT_ONCE)) as shown:
        rows = []
        configuration = Path(folder) / "pytest.ini"  # the project's own asks for plugins
        configuration.write_text("[pytest]\nmarkers = full\n")
        started = [
            (names, subprocess.Popen(_command(names, keyword, configuration), cwd=ROOT)) for names in AT_ONCE
        ]
        deadline = time.monotonic() + SECONDS_FOR_TESTS
        for names, process in started:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            rows.append((", ".join(names), *_counts(_report(names, configuration))))
            shown.done(" ".join(rows[-1]))
    return Result(
        title="Tests of sync_bn on a GPU",
        columns=("files", *COUNTS),
        rows=rows,
        notes=[
            "Ranks joined by gloo share the first GPU. With two GPUs or more there are also ranks joined by "
            "NCCL, each on its own GPU; with one, these tests are skipped.",
            f"Files without numbers did not end within {SECONDS_FOR_TESTS} s.",
        ],
    )


def passed(tests: Result) -> bool:
    """Whether tests ran in all files, and none failed. Without Triton all are skipped."""
    return all(row[2:4] == ("0", "0") and row[1] != row[4] for row in tests.rows)


def _command(names: Sequence[str], keyword: str, configuration: Path) -> list[str]:
    return [
        *(sys.executable, "-m", "pytest", "-q", "-k", keyword, "-c", str(configuration)),
        *(f"--rootdir={ROOT}", f"--confcutdir={TESTS}", "-p", "no:cacheprovider"),
        f"--junitxml={_report(names, configuration)}",
        *(str(TESTS / f"test_{name}.py") for name in names),
    ]


def _report(names: Sequence[str], configuration: Path) -> Path:
    return configuration.with_name(f"{'-'.join(names)}.xml")


def _counts(report: Path) -> tuple[str, ...]:
    if not report.exists():
        return ("-",) * len(COUNTS)
    suite = ElementTree.parse(report).getroot().find("testsuite")
    assert suite is not None
    return tuple(suite.attrib[count] for count in COUNTS)


if __name__ == "__main__":
    run(main)
