"""A job gives what a plain Lightning Trainer gives on one device over the same batches, on 1 to 3 workers."""

from __future__ import annotations

import json
import warnings
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers.logger import DummyLogger
from torch import Tensor

from testing.ranks import RankError
from tests.training import lab_modules
from tests.training.attempts import attempt
from tests.training.worlds import Worlds

EPOCHS = 2
CASES = [
    *((kind, "Regression") for kind in lab_modules.COLLATED),
    *((kind, "Logs") for kind in ("tuple", "own class", "time first")),
    *((kind, "Metrics") for kind in ("tuple", "dict", "own class", "tensors of different sizes")),
    *((kind, "Adversarial") for kind in ("tuple", "own class")),
    ("tuple", "Regression", "Hooked"),
]


class Records(DummyLogger):
    """Keeps what is logged, by name, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.values: dict[str, list[float]] = defaultdict(list)

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:  # noqa: ARG002
        for name, value in metrics.items():
            if name != "epoch":
                self.values[name].append(float(value))


class Result(NamedTuple):
    losses: list[float]
    logged: dict[str, list[float]]
    state: dict[str, Tensor]


def plain(kind: str, module: str, data_module: str) -> Result:
    """What Lightning gives without this project."""
    seed_everything(42, verbose=False)
    data, logger, losses = getattr(lab_modules, data_module)(kind), Records(), []

    model: LightningModule = getattr(lab_modules, module)().double()
    backward = model.backward

    def recorded(loss: Tensor, *args: Any, **kwargs: Any) -> None:
        losses.append(float(loss.detach()))
        backward(loss, *args, **kwargs)

    model.backward = recorded  # type: ignore[method-assign]
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        precision="64-true",
        max_epochs=EPOCHS,
        logger=logger,
        log_every_n_steps=1,
        num_sanity_val_steps=0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(model, datamodule=data)
    return Result(losses, dict(logger.values), model.state_dict())


def spec_of(kind: str, module: str, data_module: str) -> dict[str, Any]:
    return {
        "model": {"class_path": f"tests.training.lab_modules.{module}"},
        "data": {"class_path": f"tests.training.lab_modules.{data_module}", "init_args": {"kind": kind}},
        "training": {"global_batch_size": 4, "max_epochs": EPOCHS, "precision": "64-true", "seed": 42},
    }


def ours(worlds: Worlds, workers: int, spec: dict[str, Any], folder: Path) -> Result:
    done = worlds.run(workers, attempt, spec, folder)[0]
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    names = {name for row in rows for name in row} - {"step", "epoch", "learning_rate"}
    values = {name: [row[name] for row in rows if name in row] for name in names}
    return Result(values.pop("train_loss"), values, dict(done.state))


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_a_job_gives_what_a_plain_trainer_gives(
    worlds: Worlds, tmp_path: Path, case: tuple[str, ...]
) -> None:
    kind, module, data_module = (*case, "Data")[:3]
    expected = plain(kind, module, data_module)
    # Of several losses of a batch the last counts.
    every = len(expected.losses) // (EPOCHS * 4)

    rounding = 1e-6 if module == "Metrics" else 1e-9  # torchmetrics counts in float32

    for workers in (1, 2, 3):
        found = ours(worlds, workers, spec_of(kind, module, data_module), tmp_path / str(workers))

        assert found.losses == pytest.approx(expected.losses[every - 1 :: every], rel=1e-9)
        assert found.logged.keys() == expected.logged.keys()
        for name, values in expected.logged.items():
            assert found.logged[name] == pytest.approx(values, rel=rounding), name
        torch.testing.assert_close(found.state, expected.state, rtol=1e-9, atol=1e-9)


def test_a_data_module_is_torn_down(worlds: Worlds, tmp_path: Path) -> None:
    done = worlds.run(1, attempt, spec_of("tuple", "Regression", "Hooked"), tmp_path)[0]

    assert done.said.count("teardown of fit") == 1


def test_several_loaders_to_train_on_are_refused(worlds: Worlds, tmp_path: Path) -> None:
    with pytest.raises(RankError, match="Several returns 2 loaders to train on"):
        worlds.run(2, attempt, spec_of("tuple", "Regression", "Several"), tmp_path)
