"""A step that depends on how shards are dealt is refused before training, by the name of what does."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import pytest

from tests.training.attempts import attempt
from tests.training.bits import faulty
from tests.training.bits.runs import hashes_of, spec_of
from tests.training.bits.test_faults import enter_with_generator_of_rank
from tests.training.worlds import Worlds
from training.bits.dry_step import DryStep
from training.bits.exchange import Exchange
from training.bits.observed import Observed
from training.bits.snapshot import Snapshot
from training.bits.state import ShardState
from training.errors import StepError

AFTER, ON, AGAIN = "after other shards", "on another worker", "in a step that is run again"

EXPECTED: dict[str, tuple[str, str]] = {
    "SumsShards": ("the output of net.1 (SumsShards) is another one", AFTER),
    "SumsInPlace": ("the output of net.1 (SumsInPlace) is another one", AFTER),
    "Caches": ("the output of net.1 (Caches) is another one", AFTER),
    "CachesCalls": ("the output of net.1 (CachesCalls) is another one", AFTER),
    "StatisticsOfList": ("the output of net.1 (StatisticsOfList) is another one", AFTER),
    "Counts": ("the output of net.1 (Counts) is another one", AFTER),
    "InClosure": ("the output of net.1 (InClosure) is another one", AFTER),
    "OwnGenerator": ("the output of net.1 (OwnGenerator) is another one", AFTER),
    "MadeInStep": ("the output of a Linear that is made in the step is another one", AFTER),
    "rate": ("the lr to which Faulty.training_step sets its optimizer is another one", AFTER),
    "SeededByRank": ("the output of net.1 (SeededByRank) is another one", ON),
    "ByVariable": ("the output of net.1 (ByVariable) is another one", ON),
    "ByWorkersSamples": ("the output of net.1 (ByWorkersSamples) is another one", ON),
    "OneOfEachRank": ("net.1 (OneOfEachRank) raises IndexError (list index out of range)", ON),
    "Hooked": ("what net (Sequential) passes to net.2 (SyncBatchNorm) is another one", ON),
    "ScalesGradient": ("the gradient that net.1 (ScalesGradient) passes back is another one", ON),
    "MovesBuffer": ("the buffer 'centre' of net.1 (MovesBuffer) is another one", ON),
    "loss": ("the loss of Faulty.training_step is another one", ON),
    "gradient of the step": ("the gradient that Faulty.training_step passes back to net", ON),
    "logged": ("the value 'worker' that Faulty.training_step logs is another one", ON),
    "Unseeded": ("the output of net.1 (Unseeded) is another one", AGAIN),
    "MovesWeight": ("a step changes the weight net.1.slow by itself", "max_norm"),
}


def spec_with(fault: str, **training: Any) -> dict[str, Any]:
    kind = "FaultyByHand" if fault in BY_HAND else "Faulty"
    model = {
        "class_path": f"{faulty.__name__}.{kind}",
        "init_args": {"fault": fault.removeprefix("by hand, ")},
    }
    return spec_of("", max_epochs=1, **training) | {"model": model}


BY_HAND = {f"by hand, {fault}": EXPECTED[fault] for fault in ("Caches", "ScalesGradient")}
"""With manual optimization."""

PLANTED = {
    "sums in the order of ranks": (
        (Exchange, "sum", lambda _, own: own.sum(0)),
        ("the output of net.2 (SyncBatchNorm) is another one", AFTER),
    ),
    "a generator seeded by rank": (
        (ShardState, "enter", enter_with_generator_of_rank),
        ("the output of net.1 (Dropout) is another one", ON),
    ),
}
"""Faults in our own code."""


def refusal(rank: int, fault: str, folder: Path, precision: str = "32-true") -> str:
    with pytest.raises(StepError) as caught:
        attempt(rank, spec_with(fault, precision=precision), folder)
    return str(caught.value)


def refusals(rank: int, folder: Path) -> dict[str, str]:
    with patch.dict(os.environ, {faulty.VARIABLE: "0"}):
        found = {fault: refusal(rank, fault, folder / fault) for fault in EXPECTED | BY_HAND}
    for fault, (where, _) in PLANTED.items():
        with patch.object(*where):
            found[fault] = refusal(rank, "Dropout", folder / fault, precision="64-true")
    return found


@pytest.fixture(scope="module")
def refused(worlds: Worlds, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return worlds.run(1, refusals, tmp_path_factory.mktemp("faults"))[0]


@pytest.mark.parametrize("fault", [*EXPECTED, *BY_HAND, *PLANTED])
def test_a_planted_fault_is_refused_by_name_on_one_worker(refused: dict[str, str], fault: str) -> None:
    what, when = PLANTED[fault][1] if fault in PLANTED else (EXPECTED | BY_HAND)[fault]

    assert refused[fault].startswith(what)
    assert when in refused[fault]
    assert refused[fault].endswith("or set training.reproducible to curve")


def test_a_rank_that_was_read_at_the_start_is_refused_on_all_workers(worlds: Worlds, tmp_path: Path) -> None:
    one, two = worlds.run(2, refusal, "rank of the start", tmp_path)

    assert one == two
    assert one.startswith(f"the loss of Faulty.training_step is another one {ON}")


class Left(NamedTuple):
    """What a run of `Keeps` leaves: hashes, what it has kept in each call, threads, and what observes."""

    hashes: dict[str, str]
    calls: Sequence[str]
    threads: int
    observers: int


def left(rank: int, folder: Path) -> Left:
    faulty.Keeps.count = 0
    faulty.SEEN.clear()
    before = threading.active_count()
    done = attempt(
        rank, spec_of("", max_epochs=1) | {"model": {"class_path": f"{faulty.__name__}.Keeps"}}, folder
    )
    gc.collect()
    observers = sum(type(each) in (Observed, Snapshot) for each in gc.get_objects())
    return Left(hashes_of(done, folder), done.calls, threading.active_count() - before, observers)


def both(rank: int, folder: Path) -> tuple[Left, Left]:
    with patch.object(DryStep, "check") as check:
        without = left(rank, folder / "without")
    assert check.call_count == 1
    return without, left(rank, folder / "with")


def test_the_dry_step_leaves_everything_as_it_was(worlds: Worlds, tmp_path: Path) -> None:
    without, afterwards = worlds.run(1, both, tmp_path)[0]

    assert afterwards == without
    assert len(afterwards.calls) == 4 * 4
    assert afterwards.observers == 0
