"""The loss of the global batch over its shards, and their weights in its gradient."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from copy import copy
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from training.bits.exchange import Exchange
from training.bits.threads import ShardThreads
from training.callbacks.global_loss import INSTEAD_OF_NONE, GlobalLoss
from training.callbacks.job_step import job_step
from training.callbacks.meeting import meet
from training.callbacks.stop_vote import Vote
from training.callbacks.target_means import TargetMeans, counted_by, refuse_plain_means
from training.errors import NonFiniteLoss, StepError


class ShardLoss(GlobalLoss):
    """`GlobalLoss` for a rank with several shards: each shard counts as a rank's share does there."""

    def __init__(self, *args: Any, exchange: Exchange, threads: ShardThreads, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._exchange, self._threads = exchange, threads
        self.of_shard = [TargetMeans(self.share, self._meet) for _ in exchange.own]
        """What counts the targets of each shard of this rank."""

    def over(self, exchange: Exchange, threads: ShardThreads) -> ShardLoss:
        """Returns the loss of the running micro-batch over other shards; this one stays as it is."""
        other = copy(self)
        other._exchange, other._threads = exchange, threads
        other.of_shard = [TargetMeans(self.share, other._meet) for _ in exchange.own]
        return other

    def total(self, losses: Sequence[Tensor | None], samples: Sequence[int]) -> Tensor | None:
        """Returns the mean loss over the global micro-batch, times its part of the step. Collective.

        losses: of this rank's shards, each a mean over its samples. The result has the gradients of these
        losses, weighted. None if no shard has a gradient to give.
        """
        rows = []
        for loss, count, targets in zip(losses, samples, self.of_shard, strict=True):
            counts = count if loss is not None else 0
            mean = 0.0 if loss is None or not count else float(loss.detach())
            own = targets.targets if counts else 0.0
            ignored = float(targets.ignored) if counts else 0.0
            has_gradient = loss is not None and loss.requires_grad
            rows.append([mean * counts, counts, ignored, own, own**2 / (counts or 1), has_gradient])
            targets.forget()
        table = torch.tensor(rows, dtype=torch.float64)
        loss_sum, counted, ignored, targets, spread, gradients = self._exchange.sum(table).tolist()
        if 0 < gradients < self._exchange.shards:
            raise StepError(
                f"training_step gave no loss with a gradient for {self._exchange.shards - gradients:.0f} of "
                f"{self._exchange.shards} shards of a batch; {INSTEAD_OF_NONE}"
            )
        refuse_plain_means(ignored=ignored, targets=targets, spread=spread, samples=counted)
        mean = loss_sum / counted if counted else 0.0
        if not math.isfinite(mean):
            raise NonFiniteLoss(
                f"the loss is {mean} at step {job_step(self.trainer) + 1}; lower the learning rate, check "
                "the data, or train in a higher precision"
            )
        self._told, self._passed = True, True
        self._mean = mean if counted else None
        self._micro_batch_sums = (loss_sum, counted)
        micro_batches = self.trainer.accumulate_grad_batches
        part = micro_batches * self._part_of_step()
        weights = [count * part / (counted or 1) for count in samples]
        pairs = [
            (loss, weight)
            for loss, weight in zip(losses, weights, strict=True)
            if loss is not None and loss.requires_grad
        ]
        if not pairs:
            return None
        given, of_given = zip(*pairs, strict=True)
        total: Tensor = _Weighted.apply(mean, of_given, *given)  # type: ignore[no-untyped-call]
        return total

    def on_before_backward(self, _trainer: Trainer, _module: LightningModule, _loss: Tensor) -> None:
        self.count_votes()

    def count_votes(self) -> None:
        """Tells the other ranks whether this one votes to save or to stop. Collective."""
        vote = self.vote.own if self._is_last else Vote.GO_ON
        own = [vote >= Vote.SAVE, vote >= Vote.SAVE_AND_STOP, self.trainer.should_stop]
        numbers = torch.tensor(own, dtype=torch.int64, device=self.module.device)
        if self._exchange.world_size > 1:
            dist.all_reduce(numbers)
        save, stop, ends = numbers.tolist()
        self.vote.count(save=save, stop=stop)
        self.trainer.should_stop |= ends > 0

    def agree(self, place: str) -> None:
        """Raises StepError unless all ranks are at the same place of a training_step. Collective.

        Never waits for a rank that waits for this one, in a layer for example. place: in words.
        """
        if self._exchange.world_size == 1:
            return
        if others := self._barrier.wait():
            raise StepError(
                f"rank {dist.get_rank()} is at {place}, while rank {', '.join(map(str, others))} of "
                f"{self._exchange.world_size} runs a layer that sees the whole batch; every shard must run "
                "such layers, self.manual_backward and calls of optimizers equally often and in the same "
                "order: decide by what all shards know, such as the number of the batch"
            )
        meet(place, torch.zeros(0, dtype=torch.float64, device=self.module.device))

    def end_manual_step(self) -> None:
        if not self._told:
            self.count_votes()

    def on_after_backward(self, *_: Any) -> None: ...

    def _tell_skip(self, loss: Tensor | None) -> None: ...

    def in_closure(self, closure: Callable[[], Any], *, needs_loss: bool) -> Callable[[], Any]:
        def whole() -> Any:
            if closure() is not None and self._mean is not None:
                mean = self._mean / self.trainer.accumulate_grad_batches
                return torch.tensor(mean, dtype=torch.float64, device=self.module.device)
            if needs_loss:
                raise StepError(f"training_step gave no loss, and its optimizer needs one; {INSTEAD_OF_NONE}")
            return None

        return whole

    def _check_evaluation(self) -> None:
        own = [[float(targets.ignored)] for targets in self.of_shard]
        for targets in self.of_shard:
            targets.forget()
        refuse_plain_means(ignored=float(self._exchange.sum(torch.tensor(own, dtype=torch.float64))))

    def in_shards(self, device: torch.device) -> AbstractContextManager[None]:
        """Returns a context for a step, in which losses over counts are of the global batch."""
        return counted_by(self.of_shard, lambda: self.of_shard[self._threads.running or 0], device)

    def _meet(self, place: str, numbers: Tensor) -> Tensor:
        def joint(shards: list[Tensor]) -> list[Tensor]:
            return [self._exchange.sum(torch.stack(shards))] * len(shards)

        result: Tensor = self._threads.meet(place, numbers, joint)
        return result


def losses_of(outputs: Sequence[Any]) -> list[Tensor | None]:
    """Returns the losses in what `training_step` has returned for each shard."""
    return [output["loss"] if isinstance(output, Mapping) else output for output in outputs]


class _Weighted(torch.autograd.Function):
    """A number with the weighted gradients of other losses."""

    @staticmethod
    def forward(ctx: Any, value: float, weights: Sequence[float], *losses: Tensor) -> Tensor:
        ctx.weights = weights
        return losses[0].new_tensor(value)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        return None, None, *(gradient * weight for weight in ctx.weights)
