"""Each private part of a library works as the training relies on; a failure names what an upgrade changed."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar
from unittest.mock import patch

import numpy as np
import pytest
import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler, TensorDataset
from torchmetrics import SumMetric

from training import internals
from training.hangs.watchdog import _collectives


def new_trainer(steps: int = 2) -> Trainer:
    return Trainer(
        accelerator="cpu",
        max_steps=steps,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


class Logs(LightningModule):
    """Logs 1, 2, … for the epoch and keeps what Lightning has made of it by then."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.of_stage: list[float] = []
        self.of_epoch: list[float] = []

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        self.log("value", float(index + 1), on_step=False, on_epoch=True, batch_size=1)
        for found, results in (
            (self.of_stage, internals.logged_in_stage(self.trainer)),
            (self.of_epoch, internals.logged_in_epoch(self.trainer)),
        ):
            found.append(float(results["training_step.value"].value))
        assert len(internals.logged_in_stage(self.trainer).batch[0]) == 1
        loss: Tensor = self.layer(batch[0]).mean()
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.filterwarnings("ignore")
def test_lightning_keeps_what_a_stage_and_an_epoch_have_logged() -> None:
    module = Logs()
    new_trainer().fit(module, DataLoader(TensorDataset(torch.ones(2, 1))))

    assert module.of_stage == module.of_epoch == [1.0, 3.0]


def test_lightning_broadcasts_a_signal_before_each_batch_until_that_is_left_out() -> None:
    trainer = new_trainer()
    with patch.object(dist, "broadcast") as broadcast:
        _TrainingEpochLoop._broadcast_sigterm_tensor(trainer.fit_loop.epoch_loop)
    assert broadcast.called

    internals.skip_sigterm_broadcast(trainer)

    with patch.object(dist, "broadcast") as broadcast:
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor()
    assert not broadcast.called


@pytest.mark.filterwarnings("ignore")
def test_an_epoch_has_the_length_that_is_set_before_it_and_ends_with_validation() -> None:
    class Lengths(Callback):
        validated: ClassVar[list[int]] = []

        def on_train_epoch_start(self, trainer: Trainer, _module: LightningModule) -> None:
            rows.n = [2, 4, 1][trainer.current_epoch]
            internals.set_epoch_length(trainer, rows.n)

        def on_validation_end(self, trainer: Trainer, _module: LightningModule) -> None:
            self.validated.append(trainer.global_step)

    class Rows(Sampler[int]):
        n = 2

        def __iter__(self) -> Iterator[int]:
            return iter(range(self.n))

        def __len__(self) -> int:
            return self.n

    class Validated(Logs):
        def validation_step(self, _batch: list[Tensor], _index: int) -> None: ...

    rows, data = Rows(), TensorDataset(torch.ones(4, 1))
    trainer = new_trainer(steps=7)
    trainer.callbacks.append(Lengths())  # type: ignore[attr-defined]

    trainer.fit(Validated(), DataLoader(data, sampler=rows), DataLoader(data))

    assert Lengths.validated[-3:] == [2, 6, 7]


def test_torchmetrics_keeps_reductions_updates_and_the_last_value() -> None:
    metric = SumMetric()
    metric.update(2.0)
    assert metric.compute() == 2.0
    assert internals.reductions(metric).keys() == {"sum_value"}
    assert internals.update_count(metric) == 1

    metric.sum_value = torch.tensor(5.0)
    assert metric.compute() == 2.0
    internals.forget_computed(metric)
    assert metric.compute() == 5.0
    internals.set_update_count(metric, 7)
    assert metric.update_count == 7


def test_torch_walks_nested_containers() -> None:
    nested = {"a": [torch.ones(2), 1], "b": (torch.zeros(3),)}

    assert internals.tree_map(lambda leaf: leaf, nested).keys() == {"a", "b"}
    assert len(internals.tree_leaves(nested)) == 3


def test_torch_loads_a_numpy_array_without_running_code(tmp_path: Path) -> None:
    array = np.arange(3, dtype=np.uint32)
    torch.save(array, tmp_path / "array.pt")

    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "array.pt", weights_only=True)
    with torch.serialization.safe_globals(list(internals.PICKLED_ARRAY)):
        loaded = torch.load(tmp_path / "array.pt", weights_only=True)

    assert np.array_equal(loaded, array)


def test_a_process_group_counts_its_collectives(tmp_path: Path) -> None:
    assert internals.collectives_entered() is None
    assert _collectives() is None
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        before = internals.collectives_entered()
        dist.all_reduce(torch.ones(1))
        assert before is not None
        assert internals.collectives_entered() == before + 1 == _collectives()
    finally:
        dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore")
def test_mlflow_takes_its_active_run_from_a_stack_for_each_thread() -> None:
    import mlflow

    seen: list[object] = []
    internals.replace_active_runs(lambda: ["of every thread"])
    try:
        thread = threading.Thread(target=lambda: seen.append(mlflow.active_run()))
        thread.start()
        thread.join()
        internals.add_active_run("within")
        seen.append(mlflow.active_run())
    finally:
        internals.replace_active_runs(list)

    assert seen == ["of every thread", "within"]
    assert mlflow.active_run() is None
