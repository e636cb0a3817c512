"""The progress of a job with manual optimization counts batches, and ends at its total."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import EarlyStopping
from torch import Tensor, nn

from tests.training.fitting import Fitted, Plain, fit, make_spec
from tests.training.worlds import Worlds

BATCHES = 4  # of an epoch


class TwoOptimizers(LightningModule):
    """Steps one optimizer in every batch, and another in every second one."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.body = Plain()

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        optimizers: Any = self.optimizers()
        loss = nn.functional.cross_entropy(self.body(batch[0]), batch[1])
        for optimizer in optimizers:
            optimizer.zero_grad()
        self.manual_backward(loss)
        for optimizer in optimizers[: 1 + index % 2]:
            optimizer.step()

    def validation_step(self, _batch: Any, _index: int) -> None:
        self.log("val_loss", 1.0)

    def configure_optimizers(self) -> Any:
        parts = (self.body.layers, self.body.head)
        return [torch.optim.SGD(part.parameters(), lr=0.01) for part in parts]


def two_optimizers() -> nn.Module:
    return TwoOptimizers()


def progress(worlds: Worlds, *, callbacks: Sequence[Callback] = (), **training: Any) -> Fitted:
    run = functools.partial(fit, callbacks=callbacks)
    return worlds.run(2, run, make_spec(**training), two_optimizers)[0]


def test_an_epoch_has_a_step_a_batch(worlds: Worlds) -> None:
    fitted = progress(worlds)

    assert [step for step, _ in fitted.history["train_loss"]] == list(range(1, 3 * BATCHES + 1))
    assert_ended_at(fitted, 3 * BATCHES)


@pytest.mark.parametrize(("max_steps", "batches"), [(6, 4), (7, 5), (9, 6)])
def test_max_steps_counts_the_steps_of_all_optimizers(worlds: Worlds, max_steps: int, batches: int) -> None:
    assert_ended_at(progress(worlds, max_epochs=None, max_steps=max_steps), batches)


def test_a_run_that_is_stopped_early_ends_at_its_total(worlds: Worlds) -> None:
    stop = EarlyStopping("val_loss", patience=1)

    assert_ended_at(progress(worlds, callbacks=[stop]), 2 * BATCHES)


def assert_ended_at(fitted: Fitted, batches: int) -> None:
    assert fitted.progress is not None
    assert (fitted.progress.step, fitted.progress.total_steps) == (batches, batches)
