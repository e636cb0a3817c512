"""The loss of the global batch, whatever each rank's share of it.

DDP averages gradients over ranks as if each had as many samples, and Lightning those of the k micro-batches
of a step. With a loss l_jr that is a mean over the n_jr samples of micro-batch j on rank r, the gradient of
the mean over all N samples of the global batch is

    1/N Σ_jr n_jr ∇l_jr  =  Σ_j 1/W Σ_r (n_jr W k / N) ∇(l_jr / k) ,

so each gradient is scaled by n W k / N before DDP averages over the W ranks. A short batch of fewer than k
micro-batches is no exception: Lightning divides by k all the same, and N is what there is.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.data import extract_batch_size
from torch import Tensor

from training.callbacks.stop_vote import StopVote, Vote
from training.loading.batches import GlobalBatches
from training.model.nonfinite import blame
from training.tracking.tracker import Tracker


class GlobalLoss(Callback):
    """Weights each rank's gradient by its share and records `train_loss`, the mean over the global batch.

    In the last micro-batch of a step it also counts the ranks' votes on saving and stopping (`vote`).

    Raises NonFiniteLoss on every rank, before the optimizer's step, when the mean over a micro-batch is NaN
    or infinite.
    """

    def __init__(self, tracker: Tracker, vote: StopVote) -> None:
        self.tracker, self.vote = tracker, vote
        self.samples = 0
        self.batch: tuple[Any, int] = (None, 0)
        self.value = math.nan
        self._passes = range(1)  # the micro-batches of this step
        self._found = (0.0, 0.0)  # of this micro-batch: the sum of losses, the number of samples
        self._total, self._count = 0.0, 0.0  # of those of this step so far

    def on_train_batch_start(
        self, trainer: Trainer, _module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.samples = extract_batch_size(batch)
        self.batch = (batch, batch_idx)
        first = batch_idx - batch_idx % trainer.accumulate_grad_batches
        stop = min(first + trainer.accumulate_grad_batches, trainer.num_training_batches)
        self._passes = range(first, int(stop))
        if batch_idx == first:
            self._total, self._count = 0.0, 0.0

    @property
    def _is_last(self) -> bool:
        return self.batch[1] == self._passes[-1]

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        # One small all-reduce a micro-batch, reached by every rank: Lightning calls this once for each batch
        # on each of them. Reading it here waits for the forward pass; it is what stops a NaN before it gets
        # into the weights.
        passes = trainer.accumulate_grad_batches
        here = loss.detach().double() * passes / _loss_scale(trainer)
        vote = self.vote.own if self._is_last else Vote.GO_ON
        # Not multiplied on a rank without samples: its mean is NaN.
        lost = here * self.samples if self.samples else torch.zeros_like(here)
        sums = torch.stack(
            [lost, *here.new_tensor([self.samples, vote >= Vote.SAVE, vote >= Vote.SAVE_AND_STOP])]
        )
        dist.all_reduce(sums)
        total, count, save, stop = sums.tolist()
        self.vote.count(save=save, stop=stop)
        if not math.isfinite(total / count):
            raise blame(pl_module, *self.batch, step=trainer.global_step + 1, loss=total / count)
        self._found = (total, count)
        weight = self.samples * dist.get_world_size() * passes / self._samples_of_step(trainer, count)
        loss.register_hook(lambda gradient: gradient * weight)  # type: ignore[no-untyped-call]

    def _samples_of_step(self, trainer: Trainer, count: float) -> float:
        batches = getattr(trainer.train_dataloader, "batch_sampler", None)
        if isinstance(batches, GlobalBatches):
            return batches.count(self._passes.start, self._passes.stop)
        return count * len(self._passes)  # a loader of the user's own, whose batches are taken to be alike

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self._total += self._found[0]
        self._count += self._found[1]
        if not self._is_last:
            return
        self.value = self._total / self._count
        rates = {param["lr"] for optimizer in trainer.optimizers for param in optimizer.param_groups}
        self.tracker.log(
            trainer.global_step,
            trainer.current_epoch,
            {"train_loss": self.value, "learning_rate": float(max(rates, default=math.nan))},
        )


def _loss_scale(trainer: Trainer) -> float:
    """What mixed precision in float16 has multiplied the loss by."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    return float(scaler.get_scale()) if scaler is not None else 1.0
