"""The loss of the global batch, correct for shares of any size.

DDP averages gradients over the W ranks as if all had equally many samples. Lightning does the same for the k
micro-batches of a step. Let l_jr be the mean loss over the n_jr samples of micro-batch j on rank r. The
gradient of the mean loss over all N samples of the global batch is then

    1/N Σ_jr n_jr ∇l_jr  =  Σ_j 1/W Σ_r (n_jr W k / N) ∇(l_jr / k) ,

so each gradient is scaled by n W k / N before DDP averages it. This also holds for a short last batch with
fewer than k micro-batches: Lightning still divides by k, and N is the number of samples in that batch.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from training.callbacks.share_counts import ShareCounts
from training.callbacks.stop_vote import StopVote, Vote
from training.loading.batches import GlobalBatches
from training.model.nonfinite import nonfinite_error
from training.tracking.tracker import Tracker


class GlobalLoss(Callback):
    """Weights each rank's gradient by its share and logs `train_loss`, the mean over the global batch.

    In the last micro-batch of a step it also counts the ranks' votes on saving and stopping (`vote`).

    Raises NonFiniteLoss on every rank, before the optimizer step, if the mean loss of a micro-batch is NaN
    or infinite.
    """

    def __init__(self, tracker: Tracker, vote: StopVote, share: ShareCounts) -> None:
        self.tracker, self.vote, self.share = tracker, vote, share
        self.batch: tuple[Any, int] = (None, 0)
        self.value = math.nan
        self._micro_batches = range(1)  # indices of this step's micro-batches
        self._micro_batch_sums = (0.0, 0.0)  # sum of losses and number of samples, over all ranks
        self._total, self._count = 0.0, 0.0  # the same two, over this step's micro-batches so far

    def on_train_batch_start(
        self, trainer: Trainer, _module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.batch = (batch, batch_idx)
        first = batch_idx - batch_idx % trainer.accumulate_grad_batches
        stop = min(first + trainer.accumulate_grad_batches, trainer.num_training_batches)
        self._micro_batches = range(first, int(stop))
        if batch_idx == first:
            self._total, self._count = 0.0, 0.0

    @property
    def _is_last(self) -> bool:
        return self.batch[1] == self._micro_batches[-1]

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        # One small all-reduce per micro-batch. Every rank reaches it, because Lightning calls this hook once
        # per batch on each rank. Reading the result waits for the forward pass, which is needed to stop a NaN
        # before it gets into the weights.
        micro_batches = trainer.accumulate_grad_batches
        local_mean = loss.detach().double() * micro_batches / _loss_scale(trainer)
        vote = self.vote.own if self._is_last else Vote.GO_ON
        # A rank without samples has a NaN mean, so it contributes zero instead of mean times 0.
        loss_sum = local_mean * self.share.samples if self.share.samples else torch.zeros_like(local_mean)
        sums = torch.stack(
            [
                loss_sum,
                *local_mean.new_tensor([self.share.samples, vote >= Vote.SAVE, vote >= Vote.SAVE_AND_STOP]),
            ]
        )
        dist.all_reduce(sums)
        total, count, save, stop = sums.tolist()
        self.vote.count(save=save, stop=stop)
        if not math.isfinite(total / count):
            raise nonfinite_error(pl_module, *self.batch, step=trainer.global_step + 1, loss=total / count)
        self._micro_batch_sums = (total, count)
        weight = (
            self.share.samples * dist.get_world_size() * micro_batches / self._samples_of_step(trainer, count)
        )
        loss.register_hook(lambda gradient: gradient * weight)  # type: ignore[no-untyped-call]

    def _samples_of_step(self, trainer: Trainer, count: float) -> float:
        batches = getattr(trainer.train_dataloader, "batch_sampler", None)
        if isinstance(batches, GlobalBatches):
            return batches.count(self._micro_batches.start, self._micro_batches.stop)
        return count * len(self._micro_batches)  # a user's own loader: assumes micro-batches of equal size

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self._total += self._micro_batch_sums[0]
        self._count += self._micro_batch_sums[1]
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
    """Returns the factor by which float16 mixed precision has scaled the loss; 1 otherwise."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    return float(scaler.get_scale()) if scaler is not None else 1.0
