from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from training.errors import BuildError
from training.model.supervised import Supervised, as_lightning_module, checked_module
from training.spec import Spec, parse_spec


def make_spec(**keys: Any) -> Spec:
    return parse_spec({"model": {"class_path": "a.Model"}, "data": {"class_path": "a.Data"}} | keys)


lightnings_own_warnings = pytest.mark.filterwarnings("ignore:.*many workers", "ignore:.*treespec, LeafSpec")


class Whole(LightningModule):
    pass


def test_an_nn_module_is_wrapped_with_the_loss_metrics_and_optimizer_of_the_spec() -> None:
    model = nn.Linear(2, 3)

    module = as_lightning_module(model, make_spec())

    assert isinstance(module, Supervised)
    assert isinstance(module.loss, nn.CrossEntropyLoss)
    optimizer = module.configure_optimizers()
    assert isinstance(optimizer, torch.optim.SGD)
    assert (optimizer.defaults["lr"], optimizer.defaults["momentum"]) == (0.1, 0.9)
    assert optimizer.param_groups[0]["params"] == list(model.parameters())


def test_a_scheduler_runs_at_the_interval_of_the_spec() -> None:
    scheduler = {
        "class_path": "torch.optim.lr_scheduler.StepLR",
        "init_args": {"step_size": 2},
        "interval": "step",
    }

    configured: Any = as_lightning_module(
        nn.Linear(2, 3), make_spec(lr_scheduler=scheduler)
    ).configure_optimizers()

    assert configured["lr_scheduler"]["interval"] == "step"
    assert configured["lr_scheduler"]["scheduler"].step_size == 2


def test_a_lightning_module_is_taken_as_it_is() -> None:
    module = Whole()

    assert as_lightning_module(module, make_spec()) is module


def test_an_optimizer_of_the_spec_replaces_that_of_a_lightning_module() -> None:
    spec = make_spec(optimizer={"class_path": "torch.optim.Adam"})
    whole = Whole()
    whole.layer = nn.Linear(1, 1)
    module = as_lightning_module(whole, spec)

    assert isinstance(module.configure_optimizers(), torch.optim.Adam)


def test_a_scheduler_without_an_optimizer_is_refused() -> None:
    spec = make_spec(lr_scheduler={"class_path": "torch.optim.lr_scheduler.StepLR"})

    with pytest.raises(BuildError, match="lr_scheduler: needs the optimizer that it schedules"):
        as_lightning_module(Whole(), spec)


class Fetches(LightningModule):
    def validation_step(self, dataloader_iter: Any) -> None:
        next(dataloader_iter)


def test_a_step_that_fetches_its_batches_itself_is_refused() -> None:
    with pytest.raises(BuildError, match=r"validation_step of Fetches takes .* write validation_step\(self"):
        as_lightning_module(Fetches(), make_spec())


def test_what_is_no_module_is_refused() -> None:
    with pytest.raises(BuildError, match=r"model.class_path: a\.Model returns a dict"):
        checked_module({}, make_spec())


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"loss": {"class_path": "torch.nn.CrossEntropy"}},
            r"loss.class_path: .* did you mean torch.nn.CrossEnt",
        ),
        (
            {"metrics": {"f1": {"class_path": "torch.nn.ReLU"}}},
            "metrics.f1.class_path: ReLU is not a torchmetrics",
        ),
        (
            {"metrics": {"f1": {"class_path": "torchmetrics.F2"}}},
            "metrics.f1.class_path: module 'torchmetrics'",
        ),
    ],
)
def test_a_loss_or_metric_that_cannot_be_is_refused_at_its_key(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(BuildError, match=message):
        as_lightning_module(nn.Linear(2, 3), make_spec(**keys))


def test_an_optimizer_with_unknown_arguments_is_refused_at_its_key() -> None:
    spec = make_spec(optimizer={"init_args": {"learning_rate": 0.1}})

    with pytest.raises(
        BuildError, match=r"optimizer\.init_args: got an unexpected keyword argument 'learning_rate'"
    ):
        as_lightning_module(nn.Linear(2, 3), spec).configure_optimizers()


@pytest.mark.parametrize("batch", [{"x": 1}, torch.ones(3), [torch.ones(3)]])
def test_batches_of_another_kind_are_refused(batch: Any) -> None:
    module = as_lightning_module(nn.Linear(2, 3), make_spec())

    with pytest.raises(BuildError, match=r"batches \(input, target\)"):
        module.training_step(batch, 0)


def evaluated(x: Tensor, y: Tensor, **keys: Any) -> dict[str, float]:
    module = as_lightning_module(nn.Identity(), make_spec(**keys))
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    (found,) = trainer.validate(module, DataLoader(TensorDataset(x, y), batch_size=4), verbose=False)
    return dict(found)


@lightnings_own_warnings
def test_evaluation_weighs_batches_by_their_samples() -> None:
    x, y = torch.randn(9, 3, dtype=torch.float64), torch.arange(9) % 3

    found = evaluated(x, y)

    assert found["val_loss"] == pytest.approx(nn.functional.cross_entropy(x, y).item(), rel=1e-12)
    assert found["val_accuracy"] == pytest.approx((x.argmax(1) == y).double().mean().item())


@lightnings_own_warnings
def test_nan_in_one_batch_of_the_evaluation_is_not_left_out_of_its_mean() -> None:
    x = torch.ones(9, 3)
    x[8, 0] = math.nan

    assert math.isnan(evaluated(x, torch.zeros(9, dtype=torch.int64))["val_loss"])


@lightnings_own_warnings
def test_a_spec_may_ask_for_no_metrics_or_for_others() -> None:
    x, y = torch.ones(4, 1), torch.zeros(4, 1)
    loss = {"class_path": "torch.nn.MSELoss"}

    assert evaluated(x, y, loss=loss, metrics={}) == {"val_loss": 1.0}
    mae = {"mae": {"class_path": "torchmetrics.MeanAbsoluteError"}}
    assert evaluated(x, y, loss=loss, metrics=mae) == {"val_loss": 1.0, "val_mae": 1.0}
