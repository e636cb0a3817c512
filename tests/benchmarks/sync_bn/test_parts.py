"""The whole benchmark, as quick as it can be, and its command where torch is all there is."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch

from benchmarks.result import Options, Result
from benchmarks.sync_bn.cases import TINY
from benchmarks.sync_bn.parts import PARTS
from benchmarks.sync_bn.pools import RanksOf
from benchmarks.sync_bn.ranks import CONTESTANTS

FORMATS = 4
ROOT = Path(__file__).parent.parent.parent.parent
WITHOUT_OTHERS = """
import sys
sys.modules.update(dict.fromkeys(["psutil", "rich", "typer", "matplotlib", "numpy", "ray", "lightning"]))
from benchmarks.sync_bn.__main__ import main
main(["memory", "gpu", "--quick"])
"""


@pytest.fixture(scope="module")
def results(ranks_of: RanksOf) -> Mapping[str, Result]:
    """Of every part, by its name."""
    return {name: part.measure(Options(repeats=1, quick=True), ranks_of) for name, part in PARTS.items()}


@pytest.mark.parametrize("part", ["local", "fused"])
def test_every_input_has_a_row_and_every_format_a_mean(results: Mapping[str, Result], part: str) -> None:
    names = [row[0] for row in results[part].rows]

    assert len(names) == (len(TINY) + 1) * FORMATS
    assert names.count("geometric mean") == FORMATS


def test_the_schemes_agree_and_have_a_time_on_two_ranks(results: Mapping[str, Result]) -> None:
    result = results["ranks"]

    rounds = [len(values) for times in result.samples.values() for values in times.values()]
    assert rounds == [4] * 2 * len(CONTESTANTS)
    assert any("the largest difference was" in note for note in result.notes)
    assert cells(result, "geometric mean")


def test_memory_is_that_of_the_tensors_which_must_be_there(results: Mapping[str, Result]) -> None:
    result = results["memory"]
    contiguous = [row for row in result.rows if row[1].endswith("float32 contiguous")]
    of_torch = {row[0]: float(row[result.columns.index("BatchNorm2d + ReLU")]) for row in contiguous}

    # Input, normalised and output; of a chain each layer's input is the output of the one before.
    assert of_torch["1 block: forward, with the input"] == pytest.approx(3, abs=0.05)
    assert of_torch["8 blocks: kept"] == pytest.approx(8, abs=0.05)
    assert len(result.rows) == 6 * FORMATS


def test_the_counted_bytes_are_the_computed_ones(results: Mapping[str, Result]) -> None:
    computed, counted = results["communication"].parts

    assert [row[0] for row in computed.rows] == [
        "2",
        "4",
        "8",
        "16",
        "32",
        "64",
        "128",
        "256",
        "512",
        "1,024",
    ]
    assert counted.rows == [
        ("2", "forward", "allreduce", "4,104", "4,104", "yes"),
        ("2", "backward", "allreduce", "4,096", "4,096", "yes"),
    ]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_nothing_is_claimed(results: Mapping[str, Result]) -> None:
    assert results["gpu"].rows == [("no GPU at hand; nothing is claimed",)]


def test_parts_run_where_torch_is_all_there_is() -> None:
    run = subprocess.run(
        [sys.executable, "-c", WITHOUT_OTHERS], cwd=ROOT, capture_output=True, text=True, timeout=300
    )

    assert run.returncode == 0, run.stderr
    assert "The activation within the layer: memory" in run.stdout
    assert "memory 4/4: bfloat16 channels_last" in run.stderr


def cells(result: Result, first: str) -> Sequence[Sequence[str]]:
    return [row for row in result.rows if row[0] == first]
