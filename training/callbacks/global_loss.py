"""The loss of the global batch, correct for shares of any size.

DDP averages gradients over the W ranks as if all had equally many samples. Lightning does the same for the k
micro-batches of a step. Let l_jr be the mean loss over the n_jr samples of micro-batch j on rank r. The
gradient of the mean loss over all N samples of the global batch is then

    1/N Σ_jr n_jr ∇l_jr  =  Σ_j 1/W Σ_r (n_jr W k / N) ∇(l_jr / k) ,

so each gradient is scaled by n W k / N before DDP averages it. This also holds for a short last batch with
fewer than k micro-batches: Lightning still divides by k, and N is the number of samples in that batch.

With `equal_parts` every micro-batch counts as much as the others, as in Lightning: N is then k times the
number of samples in micro-batch j.

A share for which `training_step` returns None is left out: the others count as the whole micro-batch. So are
samples that a `collate_fn` has dropped.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from sync_bn import SyncBatchNorm
from training import internals
from training.callbacks.job_step import job_step
from training.callbacks.meeting import meet
from training.callbacks.share_counts import ShareCounts
from training.callbacks.step_barrier import StepBarrier
from training.callbacks.stop_vote import StopVote, Vote
from training.callbacks.target_means import TargetMeans, refuse_plain_means
from training.errors import StepError
from training.loading.counted import CountedLoader
from training.model.gradient_sync import GradientSync
from training.model.nonfinite import nonfinite_error
from training.tracking.tracker import Tracker

INSTEAD_OF_NONE = (
    "instead of None or a constant, return a loss that is multiplied by 0, such as 0 * output.sum()"
)


class Exchange(NamedTuple):
    """What the ranks tell one another when a backward pass begins, summed over all ranks, in float64.

    loss: sum over the samples. ignored, targets, spread: see `target_means.refuse_plain_means`. counted: the
    number of samples, without those whose loss is None. save: the number of ranks that vote to save. stop: of
    those that also vote to stop. skipped: of those without a backward pass. partial: of those whose pass does
    not reach every parameter. ends: of those on which user code has set `trainer.should_stop`.
    """

    loss: float
    ignored: float
    counted: float
    save: float
    stop: float
    skipped: float
    partial: float
    ends: float
    targets: float
    spread: float


class GlobalLoss(Callback):
    """Weights each rank's gradient by its share and logs `train_loss`, the mean over the global batch.

    In the last micro-batch of a step it also counts the ranks' votes on saving and stopping (`vote`), and has
    the gradients averaged (`gradients`). Losses that divide by counts are those of `targets`.

    Raises on every rank, before the optimizer step: NonFiniteLoss if the mean loss of a micro-batch is NaN or
    infinite; StepError if some ranks have no backward pass in which layers of the others communicate, or if a
    loss is a mean over something else than the samples, in a validation or test at its end. Raises StepError
    on a rank whose step has ended while others, in the same step, wait for it in a collective.

    ahead: see `StepBarrier`.
    """

    def __init__(
        self,
        tracker: Tracker,
        vote: StopVote,
        share: ShareCounts,
        ahead: Callable[[], list[int]],
        *,
        equal_parts: bool = False,
    ) -> None:
        self.tracker, self.vote, self.share = tracker, vote, share
        self._barrier = StepBarrier(ahead)
        self._entered: int | None = None  # collectives, before training_step
        self._equal_parts = equal_parts
        self.gradients = GradientSync()
        self.targets = TargetMeans(share)
        self.batch: tuple[Any, int] = (None, 0)
        self.value = math.nan
        self.others_go_on = False
        """Whether this rank's loss has no gradient although another rank's has one."""
        self._hook: Any = None
        self._passed = False  # whether there was a backward pass since an optimizer stepped by hand
        self._told = False  # whether the ranks have told each other about this micro-batch
        self._mean: float | None = None  # of the global micro-batch
        self._micro_batches = range(1)  # indices of this step's micro-batches
        self._is_last = True  # whether the running micro-batch is the last one of this step
        self._micro_batch_sums = (0.0, 0.0)  # sum of losses and number of samples, over all ranks
        self._total, self._count = 0.0, 0.0  # the same two, over this step's micro-batches so far

    def setup(self, _trainer: Trainer, module: LightningModule, stage: str) -> None:  # noqa: ARG002
        self.module = module

    def on_train_batch_start(
        self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.trainer, self.module = trainer, module
        self.batch = (batch, batch_idx)
        self._told, self._micro_batch_sums = False, (0.0, 0.0)
        first = batch_idx - batch_idx % trainer.accumulate_grad_batches
        stop = min(first + trainer.accumulate_grad_batches, trainer.num_training_batches)
        self._micro_batches = range(first, int(stop))
        # Lightning knows the end of a stream without a length when it has tried to fetch one more batch.
        self._is_last = batch_idx == stop - 1 or trainer.is_last_batch
        if batch_idx == first:
            self._total, self._count = 0.0, 0.0

    def on_before_backward(self, _trainer: Trainer, _module: LightningModule, loss: Tensor) -> None:
        self._forget_hook()
        if loss.requires_grad:
            # Which parameters the pass will reach is known in its first hook.
            self._hook = loss.register_hook(lambda gradient: gradient * self._begin(loss))  # type: ignore[no-untyped-call]
        else:
            self._skip(loss)

    def on_after_backward(self, *_: Any) -> None:
        self._forget_hook()

    def begin_step(self) -> None:
        """Must be called before each `training_step`."""
        self._entered = internals.collectives_entered()

    def skip(self) -> None:
        """Tells the other ranks that `training_step` returned None.

        At once, as they tell when their backward pass begins: other callbacks communicate at the end of the
        batch.
        """
        self._skip(None)

    def end_manual_step(self) -> None:
        """Must be called after each `training_step` of manual optimization. Collective."""
        if dist.get_world_size() > 1 and (others := self._barrier.wait()):
            raise StepError(
                f"training_step has ended on {_ranks([dist.get_rank()])}, while {_ranks(others)} of "
                f"{dist.get_world_size()} runs a SyncBatchNorm layer or self.manual_backward once more; "
                "every rank must run them equally often in a batch: decide by what all ranks know, such as "
                "the number of the batch, or call self.manual_backward with a loss that is multiplied by 0"
            )
        if not self._told:
            self._tell_skip(None)
            self.gradients.finish()

    def in_closure(self, closure: Callable[[], Any], *, needs_loss: bool) -> Callable[[], Any]:
        """Wraps an optimizer's closure to return the loss of the global batch, if any rank has one.

        All ranks get the same value, also those whose own loss is None: LBFGS decides by it, and a gradient
        scaler by whether there is one. In manual optimization the closure's own value is returned.
        needs_loss: whether to raise StepError if no rank has a loss.
        """

        def whole() -> Any:
            if not self.module.automatic_optimization:
                return self._in_manual_step(closure)
            self._told = False
            loss = closure()
            if loss is None:
                self.gradients.finish()  # after the closure has zeroed the gradients
            if self._told and self._mean is not None and dist.get_world_size() > 1:
                mean = self._mean / self.trainer.accumulate_grad_batches
                loss = torch.tensor(mean, dtype=torch.float64, device=self.module.device)
            if loss is None and needs_loss:
                raise StepError(
                    "training_step returned None, but its optimizer needs a loss in each step; return a loss "
                    "that is multiplied by 0, such as 0 * output.sum()"
                )
            return loss

        return whole

    def _in_manual_step(self, closure: Callable[[], Any]) -> Any:
        result = closure()
        if not self._told and not self._passed and dist.get_world_size() > 1:
            raise StepError(
                "training_step stepped an optimizer without self.manual_backward, so the gradients are those "
                "of one worker's share alone; call self.manual_backward(loss) in place of loss.backward()"
            )
        self._passed = False
        return result

    def _begin(self, loss: Tensor) -> float:
        """Tells the other ranks that a backward pass begins; returns the weight of this rank's loss."""
        told = self._tell(loss, counts=True, reaches_all=self.gradients.reaches_all())
        weight = self.share.samples * dist.get_world_size() * self.trainer.accumulate_grad_batches
        return weight * self._part_of_step() / (told.counted or 1)

    def _skip(self, loss: Tensor | None) -> None:
        """Tells the other ranks that this rank has no backward pass; `loss` has no gradient."""
        if dist.get_world_size() > 1 and synchronizes(self.module):
            self._check_others()
        self._tell_skip(loss)

    def _check_others(self) -> None:
        # A rank that has run its layers has met the others there, and meets them next when they tell.
        if self._entered is None or self._entered != internals.collectives_entered():
            return
        if others := self._barrier.wait():
            raise StepError(
                f"training_step gave no loss with a gradient on {_ranks([dist.get_rank()])} of "
                f"{dist.get_world_size()} and did not run the network, while {_ranks(others)} runs its "
                f"SyncBatchNorm layers, which need every rank; {INSTEAD_OF_NONE}"
            )

    def _tell_skip(self, loss: Tensor | None) -> None:
        told = self._tell(loss, counts=loss is not None, reaches_all=False)
        self.others_go_on = told.skipped < dist.get_world_size()

    def _tell(self, loss: Tensor | None, *, counts: bool, reaches_all: bool) -> Exchange:
        # One small all-reduce per micro-batch. Every rank reaches it once per batch. Reading the result waits
        # for the forward pass, which is needed to stop a NaN before it gets into the weights.
        samples, vote = self.share.samples, self.vote.own if self._is_last else Vote.GO_ON
        # A rank without samples has a NaN mean, so it contributes zero instead of mean times 0.
        loss_sum = torch.zeros((), dtype=torch.float64, device=self.module.device)
        if loss is not None and samples:
            micro_batches = self.trainer.accumulate_grad_batches
            mean = loss.detach().double().reshape(()) * micro_batches / _loss_scale(self.trainer)
            loss_sum = mean * samples
        skips = loss is None or not loss.requires_grad
        counted = samples * counts
        targets = self.targets.targets if counted else 0.0
        own = Exchange(
            loss=0.0,
            ignored=0.0,
            counted=counted,
            save=vote >= Vote.SAVE,
            stop=vote >= Vote.SAVE_AND_STOP,
            skipped=skips,
            partial=not reaches_all,
            ends=self.trainer.should_stop,
            targets=targets,
            spread=targets**2 / (counted or 1),
        )
        ignored = torch.as_tensor(self.targets.ignored if counts else 0.0).to(loss_sum)
        self.targets.forget()
        numbers = torch.stack([loss_sum, ignored, *loss_sum.new_tensor(own[2:])])
        told = Exchange(*meet(f"backward pass or end of {self.share.batch}", numbers).tolist())
        self._told = True
        self._passed |= not skips
        self.vote.count(save=told.save, stop=told.stop)
        self.trainer.should_stop |= told.ends > 0
        self._check(told, skips=skips)
        self._mean = told.loss / told.counted if told.counted else None
        self._micro_batch_sums = (told.loss, told.counted)
        if self._is_last:
            automatic = self.module.automatic_optimization
            self.gradients.start(reaches_all=not told.partial, accumulated=automatic)
        return told

    def _check(self, told: Exchange, *, skips: bool) -> None:
        refuse_plain_means(
            ignored=told.ignored, targets=told.targets, spread=told.spread, samples=told.counted
        )
        if told.counted and not math.isfinite(told.loss / told.counted):
            raise nonfinite_error(
                self.module, *self.batch, step=job_step(self.trainer) + 1, loss=told.loss / told.counted
            )
        if 0 < told.skipped < dist.get_world_size() and synchronizes(self.module):
            ranks: list[Any] = [None] * dist.get_world_size()
            dist.all_gather_object(ranks, skips)
            which = [rank for rank, without in enumerate(ranks) if without]
            raise StepError(
                f"training_step gave no loss with a gradient on {_ranks(which)} of {len(ranks)}, but the "
                f"model's SyncBatchNorm layers need a backward pass on every rank; {INSTEAD_OF_NONE}"
            )

    def _part_of_step(self) -> float:
        """Returns the part of the step's samples, over all ranks, that are in the running micro-batch."""
        if self._equal_parts:
            return 1 / self.trainer.accumulate_grad_batches
        loaders, _ = internals.loaders_to_train_on(self.trainer)
        if len(loaders) == 1 and isinstance(loader := loaders[0], CountedLoader):
            of_batch = loader.samples_of_batch(self.batch[1])
            of_step = loader.samples_of_step(self.batch[1], self.trainer.accumulate_grad_batches)
            if of_batch is not None and of_step is not None:
                return of_batch / of_step
        return 1 / len(self._micro_batches)  # a user's own loader: assumes micro-batches of equal size

    def _forget_hook(self) -> None:
        if self._hook is not None:
            self._hook.remove()  # a loss may have several backward passes
            self._hook = None

    def on_validation_epoch_end(self, *_: Any) -> None:
        self._check_evaluation()

    def on_test_epoch_end(self, *_: Any) -> None:
        self._check_evaluation()

    def _check_evaluation(self) -> None:
        if dist.get_world_size() == 1:
            return
        ignored = torch.as_tensor(self.targets.ignored, dtype=torch.float64).to(self.module.device)
        self.targets.forget()
        # Every rank reaches it at the end of every validation and test.
        (total,) = meet("end of the evaluation", ignored.reshape(1)).tolist()
        refuse_plain_means(ignored=total)

    def on_train_batch_end(self, trainer: Trainer, _module: LightningModule, outputs: Any, *_: Any) -> None:
        if not self._told and not outputs:
            self._tell_skip(None)  # an optimizer_step of the user's has not run the closure
            self.gradients.finish()
        self._total += self._micro_batch_sums[0]
        self._count += self._micro_batch_sums[1]
        if not self._is_last or not self._count:
            return
        self.value = self._total / self._count
        rates = {param["lr"] for optimizer in trainer.optimizers for param in optimizer.param_groups}
        self.tracker.log(
            job_step(trainer),
            trainer.current_epoch,
            {"train_loss": self.value, "learning_rate": float(max(rates, default=math.nan))},
        )


def _ranks(numbers: list[int]) -> str:
    return f"rank {', '.join(map(str, numbers))}"


def synchronizes(module: LightningModule) -> bool:
    """Returns whether a layer of the module communicates in its backward pass."""
    return any(
        isinstance(layer, SyncBatchNorm | nn.SyncBatchNorm) and layer.training for layer in module.modules()
    )


def _loss_scale(trainer: Trainer) -> float:
    """Returns the factor by which float16 mixed precision has scaled the loss; 1 otherwise."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    return float(scaler.get_scale()) if scaler is not None else 1.0
