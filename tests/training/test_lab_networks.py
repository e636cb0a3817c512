"""Networks of labs, trained for 20 steps in float64, give on 2 workers what they give on 1."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.attempts import Done, attempt
from tests.training.lab_networks import CASES, NETWORKS
from tests.training.worlds import Worlds

STEPS, EPOCHS = 20, 5
TOLERANCE = 1e-9
"""Largest difference of two weights, relative to the largest weight of the network, and of two logged values,
relative to the largest of their name.

A weight's own size is no measure: the bias in front of a normalised layer has no effect on the loss, so that
its gradient is rounding alone. For that reason the networks are trained by SGD, too: Adam divides each
gradient by its size, and would take steps of the size of the learning rate from rounding. In float32 the
difference is 2e-7 on some CPUs and 1e-4 on others, whose convolutions in three dimensions round differently
for another number of volumes.
"""


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(
            case,
            marks=pytest.mark.skipif(
                case in NETWORKS and not find_spec("monai"),
                reason="MONAI is not installed, which `make setup` does: pip install monai",
            ),
        )
        for case in CASES
    ],
)
def test_two_workers_train_as_one(worlds: Worlds, tmp_path: Path, case: str) -> None:
    one, two = (trained(worlds, workers, case, tmp_path / str(workers)) for workers in (1, 2))

    assert len(one.series("train_loss")) == STEPS
    names = {name for row in one.rows for name in row}
    assert names >= {"train_loss", "val_loss"}
    assert names == {name for row in two.rows for name in row}
    for name in names:
        expected = one.series(name)
        largest = max(map(abs, expected.values()))
        tolerance = 1e-6 if name.endswith("_score") else TOLERANCE  # torchmetrics computes in float32
        assert two.series(name) == pytest.approx(expected, rel=0, abs=tolerance * largest), name
    weights = {name: value for name, value in one.state.items() if value.is_floating_point()}
    largest = max(float(value.abs().max()) for value in weights.values())
    for name, weight in weights.items():
        torch.testing.assert_close(two.state[name], weight, rtol=0, atol=TOLERANCE * largest)


def trained(worlds: Worlds, workers: int, case: str, folder: Path) -> Done:
    module, arguments, data, batch = CASES[case]
    spec: dict[str, Any] = {
        "model": {"class_path": _path(module), "init_args": arguments},
        "data": {"class_path": _path(data)},
        "training": {"global_batch_size": batch, "max_epochs": EPOCHS, "precision": "64-true", "seed": 42},
    }
    return worlds.run(workers, attempt, spec, folder)[0]


def _path(thing: Any) -> str:
    return f"{thing.__module__}.{thing.__name__}"
