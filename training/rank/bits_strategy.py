"""The Lightning strategy of a rank that trains to the last bit: shard by shard, gradients added as a tree."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor

from training.bits.data_check import DataCheck
from training.bits.dry_step import DryStep
from training.bits.loss import ShardLoss, losses_of
from training.bits.manual import DryOptimization, ManualOptimization
from training.bits.shards import RankShards
from training.bits.threads import in_shard
from training.errors import BuildError, StepError
from training.internals import SKIPPED, has_gradient_hooks, is_compiled, loaders_to_train_on
from training.loading.generators import seeded
from training.loading.sharded import ShardedBatch
from training.rank.another_worker import on_another_worker
from training.rank.strategy import GroupStrategy

_HOOKS_OF_A_BATCH = (
    "on_train_batch_start",
    "on_train_batch_end",
    "on_validation_batch_start",
    "on_validation_batch_end",
    "on_test_batch_start",
    "on_test_batch_end",
    "backward",
)
_TRAINS, _VALIDATES, _TESTS = range(3)


class BitsStrategy(GroupStrategy):
    """Runs each step once for every shard of this rank, and adds gradients over all shards.

    The first training step begins with a `DataCheck` and a `DryStep`, of which `doing` is told.
    """

    def __init__(
        self,
        *,
        loss: ShardLoss,
        share: Any,
        shards: RankShards,
        doing: Callable[[str], None],
    ) -> None:
        super().__init__(loss=loss, share=share)
        self._shards, self._shard_loss = shards, loss
        self._manual: ManualOptimization = ManualOptimization(shards, loss)
        self._doing, self._is_first = doing, True

    def setup(self, trainer: Trainer) -> None:
        assert self.lightning_module is not None
        refuse_uncovered(self.lightning_module)
        data: Any = getattr(trainer, "datamodule", None)
        for owner in (self.lightning_module, *([data] if data is not None else [])):
            _refuse_hook_before_transfer(owner)
        super().setup(trainer)
        if trainer.state.fn != TrainerFn.FITTING:
            self._shards.attach(self.lightning_module)

    def configure_ddp(self) -> None:
        """Makes all ranks start with the same model. It is not wrapped."""
        module = self.lightning_module
        assert module is not None
        for state in (*module.parameters(), *module.buffers()):
            dist.broadcast(state.detach(), 0)
        self._shards.attach(module)

    def teardown(self) -> None:
        self._shards.detach()
        super().teardown()

    def batch_to_device(self, batch: Any, device: torch.device | None = None, dataloader_idx: int = 0) -> Any:
        if not isinstance(batch, ShardedBatch):
            raise StepError(
                f"a step gets a {type(batch).__name__} of several loaders' batches, which "
                "training.reproducible: bits does not cut into shards; give one loader"
            )
        moved = []
        for shard in batch.shards:
            with seeded(shard.seed):  # hooks of the user's that augment
                moved.append(super().batch_to_device(shard.batch, device, dataloader_idx))
        return batch.with_batches(moved)

    def training_step(self, batch: ShardedBatch, *args: Any, **kwargs: Any) -> Any:
        module = self.lightning_module
        assert module is not None
        manual = not module.automatic_optimization
        step = BitsStrategy._manual_step if manual else DDPStrategy.training_step
        if self._is_first:
            self._is_first = False
            self._data_check().check()
            self._dry_step(step, batch, args, kwargs).check()
        if manual:
            with self._manual.in_step(module):
                self._run(_TRAINS, step, batch, args, kwargs)
            return None
        outputs = self._run(_TRAINS, step, batch, args, kwargs)
        total = self._shard_loss.total(losses_of(outputs), self._shards.samples)
        return SKIPPED if total is None else total

    def _manual_step(self, *args: Any, **kwargs: Any) -> None:
        DDPStrategy.training_step(self, *args, **kwargs)
        self._manual.end_step()

    def validation_step(self, batch: ShardedBatch, *args: Any, **kwargs: Any) -> Any:
        return self._run(_VALIDATES, DDPStrategy.validation_step, batch, args, kwargs)

    def test_step(self, batch: ShardedBatch, *args: Any, **kwargs: Any) -> Any:
        return self._run(_TESTS, DDPStrategy.test_step, batch, args, kwargs)

    def _run(self, stage: int, step: Any, batch: ShardedBatch, args: Any, kwargs: Any) -> list[Any]:
        where, call = self._call(stage, step, args, kwargs)
        with self._shard_loss.in_shards(self.root_device):
            outputs = self._shards.run(batch, call, where=where, trains=stage == _TRAINS)
        self._shards.end_step()
        return outputs

    def _call(self, stage: int, step: Any, args: Any, kwargs: Any) -> tuple[list[int], Callable[[Any], Any]]:
        """Returns what tells a step from all others, and what runs it for the batch of a shard."""
        module = self.lightning_module
        assert module is not None
        numbers = [each for each in (*args, *kwargs.values()) if isinstance(each, int)]
        where = [stage, module.trainer.current_epoch, module.trainer.global_step, *numbers]
        return where, lambda own: step(self, own, *args, **kwargs)

    def _data_check(self) -> DataCheck:
        assert self.lightning_module is not None
        (loader,), _ = loaders_to_train_on(self.lightning_module.trainer)
        _, number = self._shard_loss.batch
        return DataCheck(loader, number, self._shards.exchange, elsewhere=self._elsewhere, doing=self._doing)

    def _dry_step(self, step: Any, batch: ShardedBatch, args: Any, kwargs: Any) -> DryStep:
        module = self.lightning_module
        assert module is not None
        where, call = self._call(_TRAINS, step, args, kwargs)
        parts = self._shards, self._shard_loss, module, batch, call, where
        return DryStep(*parts, optimized=self._optimized_dry, elsewhere=self._elsewhere, doing=self._doing)

    def _elsewhere(self) -> AbstractContextManager[None]:
        return on_another_worker(self.cluster_environment)

    @contextmanager
    def _optimized_dry(self, shards: RankShards, loss: ShardLoss) -> Iterator[None]:
        module, before = self.lightning_module, self._manual
        assert module is not None
        self._manual = DryOptimization(shards, loss)
        try:
            with nullcontext() if module.automatic_optimization else self._manual.in_step(module):
                yield
        finally:
            self._manual = before

    def backward(self, closure_loss: Tensor, optimizer: Any, *args: Any, **kwargs: Any) -> Tensor:
        module, precision = self.lightning_module, self.precision_plugin
        assert module is not None
        if in_shard():  # by self.manual_backward
            self._manual.backward(closure_loss, partial(self.backward, optimizer=None), *args, **kwargs)
            return closure_loss
        loss: Tensor = precision.pre_backward(closure_loss, module)
        with self._shards.in_backward(loss):
            precision.backward(loss, module, optimizer, *args, **kwargs)
        self._shards.gradients.finish()
        return precision.post_backward(loss, module)

    def all_gather(self, *args: Any, **kwargs: Any) -> Tensor:
        self._refuse_in_step("gathers tensors of all workers (all_gather)")
        return super().all_gather(*args, **kwargs)

    def reduce(self, *args: Any, **kwargs: Any) -> Any:
        self._refuse_in_step("reduces a tensor over all workers")
        return super().reduce(*args, **kwargs)

    def broadcast(self, *args: Any, **kwargs: Any) -> Any:
        self._refuse_in_step("broadcasts an object to all workers")
        return super().broadcast(*args, **kwargs)

    def _refuse_in_step(self, does: str) -> None:
        if in_shard():
            raise StepError(
                f"a step {does}, but training.reproducible: bits runs it once for each of several shards; "
                "do that in a hook of the epoch, or set training.reproducible to curve"
            )


class ShardStates(Callback):
    """Saves what the shards have beside the model in a checkpoint of Lightning, and puts it back.

    Follows the callback that restores metrics: Lightning resets them when a run goes on.
    """

    def __init__(self, shards: RankShards) -> None:
        self._shards = shards

    def state_dict(self) -> dict[str, Any]:
        """Returns the state of all shards. Collective."""
        return self._shards.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._shards.load_state_dict(state_dict)

    def on_train_batch_start(self, *_: Any) -> None:
        self._shards.restore_metrics()


def refuse_uncovered(module: LightningModule) -> None:
    """Raises BuildError for what a LightningModule does that is not run shard by shard."""
    name, instead = type(module).__name__, "or set training.reproducible to curve"
    if any(is_compiled(part) for part in module.modules()):
        raise BuildError(
            "training.reproducible",
            f"bits does not cover torch.compile, which {name} uses; leave it out, {instead}",
        )
    for path, part in module.named_modules():
        if getattr(part, "scale_grad_by_freq", False):
            raise BuildError(
                "training.reproducible",
                f"bits runs a step shard by shard, so that scale_grad_by_freq of {path} would count within a "
                f"shard, not within the batch; leave it out, {instead}",
            )
    for parameter, value in module.named_parameters():
        if has_gradient_hooks(value):
            raise BuildError(
                "training.reproducible",
                f"bits adds gradients up beside the model's parameters, so that hooks of {parameter} "
                f"(register_hook) would not run; use on_before_optimizer_step of {name}, {instead}",
            )
    for hook in _HOOKS_OF_A_BATCH:
        if is_overridden(hook, module):
            raise BuildError(
                "training.reproducible",
                f"bits runs a step shard by shard, and {name} overrides {hook}, which is called once for all "
                f"of a worker's shards; do that in the step, {instead}",
            )


def _refuse_hook_before_transfer(owner: LightningModule | LightningDataModule) -> None:
    parent = LightningModule if isinstance(owner, LightningModule) else LightningDataModule
    if is_overridden("on_before_batch_transfer", owner, parent):
        raise BuildError(
            "training.reproducible",
            f"{type(owner).__name__} overrides on_before_batch_transfer, which is called once for all of a "
            "worker's shards; use on_after_batch_transfer, or set training.reproducible to curve",
        )
