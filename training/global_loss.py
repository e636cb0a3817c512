"""The loss of the global batch, whatever each rank's share of it.

DDP averages gradients over ranks as if each had as many samples. With n_r samples on rank r and a loss that
is a mean over them, the gradient of the mean over all N samples is

    1/N Σ_r n_r ∇loss_r  =  1/W Σ_r (n_r W / N) ∇loss_r ,

so each rank's gradient is scaled by n_r W / N before DDP averages over the W ranks.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.data import extract_batch_size
from torch import Tensor

from training.nonfinite import blame
from training.tracking import Tracker


class GlobalLoss(Callback):
    """Weights each rank's gradient by its share and records `train_loss`, the mean over the global batch.

    Raises NonFiniteLoss on every rank, before the optimizer's step, when that mean is NaN or infinite.
    """

    def __init__(self, tracker: Tracker) -> None:
        self.tracker = tracker
        self.samples = 0
        self.batch: tuple[Any, int] = (None, 0)
        self.value = math.nan

    def on_train_batch_start(
        self, _trainer: Trainer, _module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.samples = extract_batch_size(batch)
        self.batch = (batch, batch_idx)

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        # One small all-reduce a step, reached by every rank: Lightning calls this once for each batch on
        # each of them. Reading it here waits for the forward pass; it is what stops a NaN before it gets
        # into the weights.
        here = loss.detach().double() / _loss_scale(trainer)
        sums = torch.stack([here * self.samples if self.samples else here.new_zeros(()), _count(self, here)])
        dist.all_reduce(sums)
        total, count = sums.tolist()
        self.value = total / count
        if not math.isfinite(self.value):
            raise blame(pl_module, *self.batch, step=trainer.global_step + 1, loss=self.value)
        weight = self.samples * dist.get_world_size() / count
        loss.register_hook(lambda gradient: gradient * weight)  # type: ignore[no-untyped-call]

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        rates = {param["lr"] for optimizer in trainer.optimizers for param in optimizer.param_groups}
        self.tracker.log(
            trainer.global_step,
            trainer.current_epoch,
            {"train_loss": self.value, "learning_rate": float(max(rates, default=math.nan))},
        )


def _count(loss: GlobalLoss, like: Tensor) -> Tensor:
    return like.new_full((), loss.samples)


def _loss_scale(trainer: Trainer) -> float:
    """What mixed precision in float16 has multiplied the loss by."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    return float(scaler.get_scale()) if scaler is not None else 1.0
