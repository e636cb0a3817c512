"""A run that is interrupted leaves what its own loggers and checkpoint callbacks leave without it."""

from __future__ import annotations

import csv
import shutil
from contextlib import chdir
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from tests.training.attempts import Done, attempt, spec_of
from tests.training.worlds import Worlds
from training.callbacks.own_checkpoints import WrittenCheckpoints
from training.rank.own_output import cut_rows


def own_spec() -> dict[str, Any]:
    """A module that logs in every way; two loggers that count, one with a version; the best 3 checkpoints."""
    spec = spec_of(checkpoint={"every_steps": 5})
    return {
        "model": {"class_path": "tests.training.attempts.Logs"},
        "data": spec["data"],
        "training": spec["training"],
        "trainer": {
            "logger": [
                {"class_path": "CSVLogger", "init_args": {"save_dir": ".", "flush_logs_every_n_steps": 4}},
                {"class_path": "CSVLogger", "init_args": {"save_dir": "."}},
                {"class_path": "CSVLogger", "init_args": {"save_dir": "named", "version": "a"}},
            ],
            "callbacks": [
                {
                    "class_path": "ModelCheckpoint",
                    "init_args": {
                        "monitor": "plain",
                        "save_top_k": 3,
                        "save_last": True,
                        "every_n_train_steps": 3,
                    },
                },
                {"class_path": "ModelCheckpoint", "init_args": {"dirpath": "all", "save_top_k": -1}},
            ],
        },
    }


def files(folder: Path) -> list[str]:
    kept = folder / "files"
    return sorted(str(path.relative_to(kept)) for path in kept.rglob("*") if path.is_file())


def rows(folder: Path, file: str) -> list[dict[str, str]]:
    with (folder / "files" / file).open(newline="") as text:
        return list(csv.DictReader(text))


def attempt_in_a_new_place(
    rank: int, spec: dict[str, Any], folder: Path, *, stop_after: int | None = None
) -> Done:
    """One attempt, whose working directory is deleted afterwards, as on a cluster."""
    work = folder / "work"
    work.mkdir(parents=True, exist_ok=True)
    with chdir(work):
        done = attempt(rank, spec, folder, stop_after=stop_after)
        if rank == 0:
            shutil.rmtree(work)
    dist.barrier()
    return done


def in_parts(worlds: Worlds, folder: Path, sizes: list[int], stops: list[int], *, lost: bool = False) -> None:
    """A run that is stopped after the given numbers of steps. lost: the checkpoint of each stop is lost."""
    for workers, stop in zip(sizes, [*stops, None], strict=True):
        worlds.run(workers, attempt_in_a_new_place, own_spec(), folder, stop_after=stop)
        if lost and stop is not None:
            shutil.rmtree(max((folder / "run" / "checkpoints").glob("step-*")))


@pytest.fixture(scope="module")
def whole(worlds: Worlds, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    in_parts(worlds, folder, [2], [])
    return folder


FILES = [f"{place}/metrics.csv" for place in ("lightning_logs/version_0", "lightning_logs/version_1")]
FILES.append("named/lightning_logs/a/metrics.csv")


def test_an_uninterrupted_run_has_a_folder_for_each_logger_and_the_best_3_checkpoints(whole: Path) -> None:
    found = files(whole)

    assert [file for file in found if file.endswith(".csv")] == FILES
    kept = [Path(file).name for file in found if file.startswith("lightning_logs/version_0/checkpoints")]
    assert len(kept) == 4
    assert "last.ckpt" in kept
    steps = [int(row["step"]) for row in rows(whole, FILES[0]) if row["both_step"]]
    assert steps == list(range(44))


@pytest.mark.parametrize(
    ("sizes", "stops", "lost"),
    [
        pytest.param([2, 2], [13], False, id="paused"),
        pytest.param([2, 2], [22], False, id="paused between epochs"),
        pytest.param([2, 2, 2], [13, 20], True, id="lost its last steps, twice"),
        pytest.param([2, 2], [4], True, id="lost all its steps"),
        pytest.param([2, 1, 3], [13, 15], False, id="resized"),
    ],
)
def test_an_interrupted_run_leaves_the_same_files_and_rows(
    worlds: Worlds, tmp_path: Path, whole: Path, sizes: list[int], stops: list[int], lost: bool
) -> None:
    in_parts(worlds, tmp_path, sizes, stops, lost=lost)

    assert files(tmp_path) == files(whole)
    for file in FILES:
        actual, expected = rows(tmp_path, file), rows(whole, file)
        if set(sizes) == {2}:
            assert actual == expected
        else:  # one of the values is logged in float32
            assert list(map(numbers, actual)) == [pytest.approx(numbers(row), rel=1e-6) for row in expected]


def numbers(row: dict[str, str]) -> dict[str, float]:
    return {name: float(value) for name, value in row.items() if value}


def test_written_checkpoints_are_known_to_the_next_start_in_the_order_of_their_first_writing(
    tmp_path: Path,
) -> None:
    file = tmp_path / "written.jsonl"
    written = WrittenCheckpoints(file)
    for path in ("last.ckpt", "a\n.ckpt", "last.ckpt", "b.ckpt"):
        written.add(path)

    again = WrittenCheckpoints(file)

    assert len(again) == 3
    assert again.cut(1) == ["a\n.ckpt", "b.ckpt"]
    assert again.cut(1) == []
    assert WrittenCheckpoints(file).cut(0) == ["last.ckpt"]


@pytest.mark.parametrize(
    ("number", "left"),
    [(0, None), (1, "b,step\n,0\n"), (2, "b,step\n,0\n1,1\n"), (9, "b,step\n,0\n1,1\n2,2\n")],
)
def test_rows_after_the_first_ones_are_cut(tmp_path: Path, number: int, left: str | None) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("b,step\n,0\n1,1\n2,2\n")

    keys, rows = cut_rows(str(path), number)

    assert (keys, rows) == ((["b", "step"], min(number, 3)) if number else ([], 0))
    assert [each.read_text() for each in tmp_path.iterdir()] == ([] if left is None else [left])
    assert cut_rows(str(tmp_path / "none.csv"), number) == ([], 0)
