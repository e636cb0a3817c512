"""Which checkpoints a run leaves, and what torch and Lightning alone read in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.training.attempts import Data, Done, Logs, Net, attempt, spec_of
from tests.training.worlds import Worlds
from training.checkpoints.folder import Checkpoints
from training.checkpoints.listing import Listed, chosen
from training.errors import BuildError
from training.model.weights import weights_sha256


def kept(folder: Path, **options: Any) -> list[Listed]:
    return Checkpoints(folder / "run" / "checkpoints", **options).listed()


def file_of(folder: Path, which: Any) -> Path:
    return folder / "run" / "checkpoints" / chosen(kept(folder), which).name / "lightning.ckpt"


def test_the_best_and_the_last_exist_however_short_the_epochs_and_a_model_loads_them(
    worlds: Worlds, tmp_path: Path
) -> None:
    """Validation twice in an epoch, the best one in the middle of the run."""
    spec = spec_of(max_epochs=4, checkpoint={"keep_last": 1}) | {"trainer": {"val_check_interval": 11}}
    spec["optimizer"]["init_args"]["lr"] = 0.3

    done = worlds.run(2, attempt, spec, tmp_path)[0]

    curve = done.series("val_loss")
    assert len(curve) == 8
    best = min(curve, key=curve.__getitem__)
    assert best not in (0, 88)
    assert [(each.step, each.best, each.last) for each in kept(tmp_path)] == [
        (best, True, False),
        (88, False, True),
    ]
    first, last = kept(tmp_path)
    assert [first.metric, last.metric] == [curve[best], curve[88]]
    assert (first.epoch, last.epoch) == (best // 22, 4)

    saved = torch.load(file_of(tmp_path, "last"), weights_only=True)
    net = Net().double()
    net.load_state_dict(saved["state_dict"])
    torch.testing.assert_close(
        net.state_dict(),
        {key.removeprefix("model."): value for key, value in done.state.items() if key.startswith("model.")},
    )
    assert not any("SyncBatchNorm" in str(type(layer)) for layer in net.modules())


def test_lightning_loads_a_checkpoint_of_a_users_own_module(worlds: Worlds, tmp_path: Path) -> None:
    spec = {key: value for key, value in spec_of().items() if key in {"data", "training"}}
    spec["model"] = {"class_path": "tests.training.attempts.Logs"}

    done = worlds.run(2, attempt, spec, tmp_path)[0]

    torch.set_default_dtype(torch.float64)
    try:
        module = Logs.load_from_checkpoint(file_of(tmp_path, "last"))
    finally:
        torch.set_default_dtype(torch.float32)
    torch.testing.assert_close(module.state_dict(), done.state, rtol=0, atol=0)
    assert type(module.net.layers[1]) is nn.BatchNorm2d


def test_a_metric_of_the_training_makes_the_best_and_not_a_validation_between(
    worlds: Worlds, tmp_path: Path
) -> None:
    spec = {key: value for key, value in spec_of(max_epochs=3).items() if key in {"data", "training"}}
    spec["model"] = {"class_path": "tests.training.attempts.Logs"}
    spec["training"]["checkpoint"] = {"monitor": "largest", "mode": "max", "every_steps": 11, "keep_last": 9}
    spec["trainer"] = {"val_check_interval": 11}

    worlds.run(2, attempt, spec, tmp_path)

    metrics = {each.step: each.metric is not None for each in kept(tmp_path)}
    assert metrics == {11: False, 22: True, 33: False, 44: True, 55: False, 66: True}


@pytest.mark.parametrize(
    "ending",
    [
        {
            "trainer": {
                "callbacks": [
                    {
                        "class_path": "EarlyStopping",
                        "init_args": {"monitor": "val_loss", "min_delta": 100.0, "patience": 2},
                    }
                ]
            }
        },
        {"max_steps": 15},
    ],
    ids=["early stopping", "max_steps within an epoch"],
)
def test_a_run_that_is_interrupted_after_its_training_trains_no_more(
    worlds: Worlds, tmp_path: Path, ending: dict[str, Any]
) -> None:
    steps = {"max_steps": ending["max_steps"]} if "max_steps" in ending else {}
    spec = spec_of(max_epochs=9, **steps) | {key: value for key, value in ending.items() if key == "trainer"}

    def run() -> Done:
        return worlds.run(2, attempt, spec, tmp_path)[0]

    first = run()
    again = run()

    assert len(first.rows) == (15 if steps else 66)
    assert f"going on from the checkpoint of step {len(first.rows)}" in again.said
    assert again.rows == first.rows
    torch.testing.assert_close(again.state, first.state, rtol=0, atol=0)


def test_the_model_of_the_best_checkpoint_is_tested_and_delivered(worlds: Worlds, tmp_path: Path) -> None:
    spec = spec_of(max_epochs=3, checkpoint={"deliver": "best", "keep_last": 1})
    spec["optimizer"]["init_args"]["lr"] = 0.3

    done = worlds.run(2, attempt, spec, tmp_path)[0]

    curve = done.series("val_loss")
    best = min(curve, key=curve.__getitem__)
    assert best != 66
    saved = torch.load(file_of(tmp_path, "best"), weights_only=True)
    assert saved["global_step"] == best
    model = torch.load(tmp_path / "model.pt", weights_only=False)
    torch.testing.assert_close(model.state_dict(), saved["state_dict"], rtol=0, atol=0)
    assert f"the model is that of the best: step {best}, val_loss" in done.said
    assert done.weights_sha256 == weights_sha256(saved["state_dict"])

    losses = [nn.functional.cross_entropy(model(x), y, reduction="sum") for x, y in Data().test_dataloader()]
    assert done.series("test_loss") == {66: pytest.approx(sum(loss.item() for loss in losses) / 5)}


def refused(rank: int, spec: dict[str, Any], folder: Path) -> str:
    try:
        attempt(rank, spec, folder)
    except BuildError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("monitor", "words"),
    [
        ("nothing", "monitor: no metric 'nothing' was logged by the end of the epoch"),
        ("val_loss", "monitor: no metric 'val_loss' was logged by the end of the epoch"),
    ],
    ids=["no such metric", "no validation"],
)
def test_a_best_model_that_there_cannot_be_is_refused(
    worlds: Worlds, tmp_path: Path, monitor: str, words: str
) -> None:
    spec = spec_of(checkpoint={"deliver": "best", "monitor": monitor})
    if monitor == "val_loss":
        spec["trainer"] = {"limit_val_batches": 0}

    (reason,) = worlds.run(1, refused, spec, tmp_path)

    assert words in reason
