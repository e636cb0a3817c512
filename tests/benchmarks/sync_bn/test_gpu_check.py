"""What of `make gpu-check` can be seen without a GPU."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import gpu_check
from benchmarks.result import Result
from benchmarks.sync_bn import drawn_digits, gpu
from benchmarks.sync_bn.cases import TINY, every_format
from benchmarks.sync_bn.pools import RanksOf
from benchmarks.sync_bn.timing import wall_clock

ROOT = Path(__file__).parents[3]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_in_a_sentence_and_fails(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_check.main([]) == 1

    assert capsys.readouterr().err == f"{gpu_check.NO_GPU}\n"


def test_ranks_time_every_contestant_that_runs_on_a_cpu(ranks_of: RanksOf) -> None:
    case = next(every_format(TINY, 4, (torch.float16,)))
    names = gpu.OURS, gpu.LOCAL, gpu.TORCH

    by_rank = ranks_of(2).run(gpu.times_of, case, names, "cpu", 2, wall_clock)

    for milliseconds in by_rank:
        assert {name: len(times) for name, times in milliseconds.items()} == dict.fromkeys(
            (*names, gpu.LIMIT), 2
        )


def test_training_on_two_ranks_ends_where_one_process_does() -> None:
    result = drawn_digits.measure("cpu", "gloo", epochs=1)

    over_ranks, alone, nudged = (float(row[2]) for row in result.rows)
    assert alone == 0 < nudged
    assert over_ranks < 0.05


def test_tests_are_counted_and_files_with_failures_or_without_an_end_do_not_pass(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text("def test_a(): pass\n\n\ndef test_b(): assert False\n")
    report = tmp_path / "report.xml"
    subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-c", "/dev/null", f"--junitxml={report}", tmp_path],
        cwd=ROOT,
        capture_output=True,
    )

    counts = gpu_check._counts(report), gpu_check._counts(tmp_path / "none.xml")

    assert counts == (("2", "1", "0", "0"), ("-", "-", "-", "-"))
    skipped, passing = ("2", "0", "0", "2"), ("2", "0", "0", "1")
    assert gpu_check.passed(Result(title="", rows=[("files", *passing)]))
    for row in (*counts, skipped):
        assert not gpu_check.passed(Result(title="", rows=[("files", *passing), ("files", *row)]))
