"""Interrupted, resized and differently sized runs give the same result as one uninterrupted run."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.training.attempts import Done, attempt, spec_of
from tests.training.worlds import Worlds

RECIPE = Path(__file__).parents[2] / "training/recipes/fashion_resnet18.yaml"
STEPS = [3, 21, 22, 23]
"""Of 44 steps, 22 per epoch: mid-epoch, before and after its last batch, after the next epoch's first."""


def whole(worlds: Worlds, workers: int, spec: dict[str, Any], folder: Path) -> Done:
    return worlds.run(workers, attempt, spec, folder)[0]


def in_parts(worlds: Worlds, sizes: list[int], stops: list[int], spec: dict[str, Any], folder: Path) -> Done:
    """A run that changes its number of workers each time it is stopped, after the given numbers of steps."""
    for workers, stop in zip(sizes, [*stops, None], strict=True):
        done = worlds.run(workers, attempt, spec, folder, stop_after=stop)[0]
        assert done.stopped == (stop is not None)
    return done


def assert_bitwise(actual: Done, expected: Done) -> None:
    assert actual.rows == expected.rows
    torch.testing.assert_close(actual.state, expected.state, rtol=0, atol=0)


def assert_same_curve(actual: Done, expected: Done, losses: float = 1e-9, weights: float = 1e-8) -> None:
    assert [row["step"] for row in actual.rows] == [row["step"] for row in expected.rows]
    for got, want in zip(actual.rows, expected.rows, strict=True):
        assert got == pytest.approx(want, rel=losses)
    torch.testing.assert_close(actual.state, expected.state, rtol=weights, atol=weights)


@pytest.fixture(scope="module")
def expected(worlds: Worlds, tmp_path_factory: pytest.TempPathFactory) -> Done:
    """The uninterrupted run on two workers."""
    return whole(worlds, 2, spec_of(noise=0.3), tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize("step", STEPS)
def test_stopped_run_goes_on_as_if_it_had_not_been(
    worlds: Worlds, tmp_path: Path, expected: Done, step: int
) -> None:
    actual = in_parts(worlds, [2, 2], [step], spec_of(noise=0.3), tmp_path)

    assert_bitwise(actual, expected)


@pytest.mark.parametrize(
    ("samples", "batch", "last", "shared"),
    [(353, 7, 3, [2, 3, 4]), (2500, 50, 50, [3])],
    ids=["7 on 2, 3, 4 with a last batch of 3", "50 on 3"],
)
def test_same_run_on_1_to_4_workers_in_float64(
    worlds: Worlds, tmp_path: Path, samples: int, batch: int, last: int, shared: list[int]
) -> None:
    assert (samples - 1) % batch + 1 == last
    spec = spec_of(samples=samples, global_batch_size=batch)

    runs = {workers: whole(worlds, workers, spec, tmp_path / str(workers)) for workers in (1, *shared)}

    assert len(runs[1].rows) >= 100
    for workers in shared:
        assert_same_curve(runs[workers], runs[1])


def test_run_is_resized_from_2_to_1_to_3_workers_within_epochs(worlds: Worlds, tmp_path: Path) -> None:
    spec = spec_of(samples=353, noise=0.3)

    expected = whole(worlds, 2, spec, tmp_path / "whole")
    actual = in_parts(worlds, [2, 1, 3], [20, 50], spec, tmp_path / "parts")

    assert_same_curve(actual, expected)


def test_losses_of_float32_agree_over_the_first_50_steps(worlds: Worlds, tmp_path: Path) -> None:
    spec = spec_of(samples=350, precision="32-true", max_steps=50) | {"lr_scheduler": None}
    spec["training"].pop("max_epochs")

    runs = {workers: whole(worlds, workers, spec, tmp_path / str(workers)) for workers in (1, 2, 3)}

    for workers in (2, 3):
        assert runs[workers].series("train_loss") == pytest.approx(runs[1].series("train_loss"), rel=1e-4)


def test_losses_of_a_resnet_on_images_in_float32_agree_over_the_first_50_steps(
    worlds: Worlds, tmp_path: Path
) -> None:
    spec = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))
    spec["model"]["init_args"]["width"] = 4
    spec["data"]["init_args"] = {"limit": 6400}
    spec["trainer"] = {"limit_val_batches": 1, "limit_test_batches": 1}
    spec["training"] = {"global_batch_size": 128, "max_steps": 50, "precision": "32-true"}

    alone, shared = (whole(worlds, workers, spec, tmp_path / str(workers)) for workers in (1, 2))

    assert len(alone.rows) == len(shared.rows) == 50
    assert shared.series("train_loss") == pytest.approx(alone.series("train_loss"), rel=1e-4)


def test_accumulated_batches_are_cut_and_resumed_alike(worlds: Worlds, tmp_path: Path) -> None:
    spec = spec_of(samples=150, noise=0.3, accumulate_grad_batches=3)

    expected = whole(worlds, 1, spec, tmp_path / "whole")
    actual = in_parts(worlds, [2, 3], [25], spec, tmp_path / "parts")

    assert_same_curve(actual, expected)
    assert [row["step"] for row in expected.rows] == list(range(1, 45))


def newest_checkpoint(folder: Path) -> Path:
    return max((folder / "run" / "checkpoints").glob("step-*"))


def test_corrupted_checkpoint_is_refused_and_the_one_before_used(
    worlds: Worlds, tmp_path: Path, expected: Done
) -> None:
    spec = spec_of(noise=0.3, checkpoint={"every_steps": 5})
    stopped = worlds.run(2, attempt, spec, tmp_path, stop_after=18)[0]
    assert stopped.stopped
    weights = newest_checkpoint(tmp_path) / "lightning.ckpt"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)

    actual = worlds.run(2, attempt, spec, tmp_path)[0]

    assert "going on from the checkpoint of step 15" in actual.said
    assert "step-000000018" in actual.said
    assert_bitwise(actual, expected)


def steps_of_checkpoints(folder: Path) -> list[int]:
    return sorted(int(path.name.rpartition("-")[2]) for path in folder.iterdir())


def test_checkpoints_are_made_every_so_many_steps_at_the_end_and_of_the_best_and_a_full_disk_costs_them_alone(
    worlds: Worlds, tmp_path: Path
) -> None:
    spec = spec_of(checkpoint={"every_steps": 5, "keep_last": 3})
    expected = whole(worlds, 2, spec, tmp_path / "whole")
    assert steps_of_checkpoints(tmp_path / "whole" / "run" / "checkpoints") == [22, 35, 40, 44]
    size = sum(file.stat().st_size for file in newest_checkpoint(tmp_path / "whole").iterdir())
    checkpoints = tmp_path / "full" / "run" / "checkpoints"
    checkpoints.mkdir(parents=True)

    with small_disk(checkpoints, int(2.5 * size)):
        actual = whole(worlds, 2, spec, tmp_path / "full")
        kept = steps_of_checkpoints(checkpoints)

    assert "the checkpoint of step 15 could not be written" in actual.said
    assert "the last one is of step 10" in actual.said
    assert kept == [5, 10]
    assert_bitwise(actual, expected)


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[None]:
    """A file system of the given size in bytes; skips the test if this process may not mount one."""
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this process may not mount a file system, and a disk cannot be filled without")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("name", ["noise", "logs"])
def test_a_run_goes_on_from_a_checkpoint_of_version_0_1(worlds: Worlds, tmp_path: Path, name: str) -> None:
    """`earlier/` has one checkpoint with dropout, and one of a LightningModule that logs in every way."""
    earlier = Path(__file__).parent / "earlier" / name
    expected = json.loads((earlier / "expected.json").read_text())
    shutil.copytree(earlier / "step-000000009", tmp_path / "run" / "checkpoints" / "step-000000009")
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in expected["rows"][:9]))

    done = whole(worlds, 2, expected["spec"], tmp_path)

    assert "going on from the checkpoint of step 9" in done.said
    assert done.rows == [pytest.approx(row, rel=1e-12) for row in expected["rows"]]


@pytest.mark.parametrize("model", ["Net", "Logs"])
def test_a_checkpoint_holds_no_class(worlds: Worlds, tmp_path: Path, model: str) -> None:
    spec = spec_of(checkpoint={"every_steps": 9}, max_steps=10, max_epochs=None)
    if model == "Logs":
        spec = {key: spec[key] for key in ("data", "training")} | {
            "model": {"class_path": "tests.training.attempts.Logs"}
        }

    whole(worlds, 2, spec, tmp_path)

    checkpoints = sorted((tmp_path / "run" / "checkpoints").iterdir())
    assert [path.name for path in checkpoints] == ["step-000000009", "step-000000010"]
    for name in ("lightning.ckpt", "train_state.pt"):
        assert all(torch.load(path / name, weights_only=True) for path in checkpoints)
