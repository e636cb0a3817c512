"""A data set whose samples depend on which it has given before is refused before training, by its name."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from tests.training.attempts import attempt
from tests.training.bits import faulty_data
from tests.training.bits.runs import equal_on, hashes_of, spec_of
from tests.training.worlds import Worlds
from training.bits.data_check import DataCheck
from training.errors import StepError

AFTER, ON, AGAIN = "after other samples", "on another worker", "when it is simply fetched again"

EXPECTED: dict[str, tuple[str, str]] = {
    "Counts": ("the data set (Counts) gives another sample[0]", AFTER),
    "CountsGlobally": ("the data set (CountsGlobally) gives another sample[0]", AFTER),
    "CountsDict": ("the data set (CountsDict) gives another sample['meta']['position']", AFTER),
    "CachesDraws": ("the data set (CachesDraws) gives another sample[0]", AFTER),
    "ChangesItself": ("the data set (ChangesItself) gives another sample[0]", AFTER),
    "OwnCongruence": ("the data set (OwnCongruence) gives another sample[0]", AFTER),
    "Unseeded": ("the data set (Unseeded) gives another sample[0]", AGAIN),
    "ReadsRank": ("the data set (ReadsRank) gives another sample[0]", ON),
    "OneOfEachRank": ("the data set (OneOfEachRank) raises IndexError (list index out of range)", ON),
    "a subset of Counts": ("the data set (Counts) gives another sample[0]", AFTER),
    "ChangesItself, as a list": ("the data set (ChangesItself) gives another sample[0]", AFTER),
    "Counts in a process": ("the data set (Counts) gives another sample[0]", AFTER),
    "ReadsProcess in two": ("the data set (ReadsProcess) gives another sample[0]", AFTER),
    "Counting": ("the collate_fn (Counting) makes another batch[0] of the same samples", AFTER),
}

FREE = (
    "Augments",
    "MakesGenerator",
    "Opens",
    "Counted",
    "a list",
    "Augments, noisy, in two processes",
    "Augments, weighted",
    "Prepared in a process",
)


def spec_with(loader: str) -> dict[str, Any]:
    data = {"class_path": f"{faulty_data.__name__}.Data", "init_args": {"loader": loader}}
    return spec_of("mlp", max_epochs=2) | {"data": data}


def refusal(rank: int, loader: str, folder: Path) -> str:
    try:
        attempt(rank, spec_with(loader), folder)
    except StepError as error:
        return str(error)
    return "not refused"


def refusals(rank: int, folder: Path) -> dict[str, str]:
    return {loader: refusal(rank, loader, folder / str(n)) for n, loader in enumerate(EXPECTED)}


@pytest.fixture(scope="module")
def refused(worlds: Worlds, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return worlds.run(1, refusals, tmp_path_factory.mktemp("faults"))[0]


@pytest.mark.parametrize("loader", EXPECTED)
def test_a_planted_fault_is_refused_by_name(refused: dict[str, str], loader: str) -> None:
    what, when = EXPECTED[loader]

    assert refused[loader].startswith(f"{what} {when}, so training.reproducible: bits would not")
    assert refused[loader].endswith("or set training.reproducible to curve")


def said(rank: int, folder: Path) -> dict[str, str]:
    return {each: attempt(rank, spec_with(each), folder / str(n)).said for n, each in enumerate(FREE)}


def test_data_sets_without_such_a_fault_are_trained_on(worlds: Worlds, tmp_path: Path) -> None:
    found = worlds.run(1, said, tmp_path)[0]

    for loader in FREE:
        assert "not checked" not in found[loader], loader


@pytest.mark.parametrize("loader", ["Augments, noisy, in two processes", "MakesGenerator"])
def test_what_data_sets_draw_leaves_the_same_bits_on_1_to_3_workers(
    worlds: Worlds, tmp_path: Path, loader: str
) -> None:
    equal_on(worlds, spec_with(loader), tmp_path, (1, 2, 3))


def test_one_of_two_workers_that_finds_a_fault_stops_both(worlds: Worlds, tmp_path: Path) -> None:
    one, two = worlds.run(2, refusal_of_counts, tmp_path)

    assert one == two
    assert one.startswith("the data set (Counts) gives another sample[0] after other samples")


def refusal_of_counts(rank: int, folder: Path) -> str:
    """The refusal of a data set that rank 1 alone has found out."""
    silent = patch.object(DataCheck, "_found", return_value="") if rank == 0 else contextlib.nullcontext()
    with silent:
        return refusal(rank, "Counts", folder)


def left(rank: int, folder: Path) -> tuple[dict[str, str], list[Any]]:
    faulty_data.SEEN.clear()
    hashes = hashes_of(attempt(rank, spec_with("Counted"), folder), folder)
    return hashes, list(faulty_data.SEEN)


def both(rank: int, folder: Path) -> list[tuple[dict[str, str], list[Any]]]:
    with patch.object(DataCheck, "check") as check:
        without = left(rank, folder / "without")
    assert check.call_count == 1
    return [without, left(rank, folder / "with")]


def test_the_check_leaves_everything_as_it_was(worlds: Worlds, tmp_path: Path) -> None:
    without, afterwards = worlds.run(1, both, tmp_path)[0]

    assert afterwards == without
    assert len(afterwards[1]) >= 2 * 32
