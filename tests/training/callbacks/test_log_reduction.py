"""Values logged by a user's LightningModule depend neither on the number of workers nor on a resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.attempts import Data, Done, Net, attempt, spec_of
from tests.training.worlds import Worlds

EACH_STEP = {"plain", "both_step", "train_loss"}
EACH_EPOCH = {"both_epoch", "mean", "counted", "largest", "samples", "seldom", "end", "val_loss"}


def spec(**training: Any) -> dict[str, Any]:
    """11 batches per epoch, the last of 3 samples; 11 validation samples in batches of 7 and 4."""
    own = spec_of(samples=73, **training)
    del own["optimizer"], own["lr_scheduler"]
    return own | {"model": {"class_path": "tests.training.attempts.Logs"}}


@pytest.fixture(scope="module")
def alone(worlds: Worlds, tmp_path_factory: pytest.TempPathFactory) -> Done:
    return worlds.run(1, attempt, spec(), tmp_path_factory.mktemp("alone"))[0]


def assert_same(actual: Done, expected: Done) -> None:
    assert len(actual.rows) == len(expected.rows)
    for got, want in zip(actual.rows, expected.rows, strict=True):
        assert got == pytest.approx(want, rel=1e-6 if "counted" in got else 1e-9)


def test_logged_values_are_the_means_of_the_global_batch(alone: Done) -> None:
    steps, epochs = list(range(1, 23)), [11, 22]
    assert {name: list(alone.series(name)) for name in EACH_STEP} == dict.fromkeys(EACH_STEP, steps)
    assert {name: list(alone.series(name)) for name in EACH_EPOCH} == dict.fromkeys(EACH_EPOCH, epochs)
    losses = alone.series("train_loss")
    assert alone.series("plain") == pytest.approx(losses)
    weights = [7] * 10 + [3]
    means = [
        sum(weight * losses[start + step] for step, weight in enumerate(weights, 1)) / 73 for start in (0, 11)
    ]
    for name in ("mean", "counted", "both_epoch"):
        assert list(alone.series(name).values()) == pytest.approx(means, rel=1e-6)
    assert alone.series("samples") == {11: 73, 22: 73}
    assert alone.series("test_size") == {22: 5}


def test_validation_counts_each_sample_once(alone: Done) -> None:
    net = Net().double()
    net.load_state_dict({name.removeprefix("net."): value for name, value in alone.state.items()})
    x, y = Data()._loader(11, 2).dataset[:]
    with torch.no_grad():
        expected = torch.nn.functional.cross_entropy(net.eval()(x), y)

    assert alone.series("val_loss")[22] == pytest.approx(float(expected), rel=1e-9)


@pytest.mark.parametrize("workers", [2, 3, 4])
def test_logged_values_do_not_depend_on_the_number_of_workers(
    worlds: Worlds, tmp_path: Path, alone: Done, workers: int
) -> None:
    assert_same(worlds.run(workers, attempt, spec(), tmp_path)[0], alone)


def test_means_of_an_epoch_go_on_after_a_break(worlds: Worlds, tmp_path: Path, alone: Done) -> None:
    worlds.run(2, attempt, spec(), tmp_path, stop_after=4)
    worlds.run(2, attempt, spec(), tmp_path, stop_after=3)
    actual = worlds.run(3, attempt, spec(), tmp_path)[0]

    assert_same(actual, alone)


def test_break_at_the_same_number_of_workers_changes_no_bit(worlds: Worlds, tmp_path: Path) -> None:
    expected = worlds.run(2, attempt, spec(), tmp_path / "whole")[0]
    worlds.run(2, attempt, spec(), tmp_path / "parts", stop_after=6)

    assert worlds.run(2, attempt, spec(), tmp_path / "parts")[0].rows == expected.rows
