"""The shards of a rank: what runs a step for each of them, and what they share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from sync_bn.layer import SyncBatchNorm, over_parts
from training.bits.environment import Environment
from training.bits.exchange import Alone, Exchange
from training.bits.gradients import ShardGradients
from training.bits.logs import ShardLogs
from training.bits.normalisation import NoRecomputation, OverShards
from training.bits.state import ShardState
from training.bits.threads import ShardThreads
from training.callbacks.share_counts import ShareCounts
from training.errors import TrainingError
from training.loading.batches import Shards
from training.loading.sharded import Shard, ShardedBatch
from training.model.supervised import Supervised

T = TypeVar("T")


class RankShards:
    """Runs steps of a module for each shard of this rank.

    share: gets the number of samples of the shard that runs. seed: of random draws in a step.
    """

    def __init__(self, exchange: Exchange, *, share: ShareCounts, seed: int) -> None:
        self.exchange = exchange
        self.threads = ShardThreads(self.exchange.own, self._enter, self._leave)
        self._share, self._seed = share, seed
        self._module: LightningModule | None = None
        self._saved: dict[str, Any] = {}
        self.logs: ShardLogs
        """What logs the values of a step; set before the first."""
        self.environments: list[Environment]
        """Those in which the steps of the run are made, this one last; set before the first step."""
        self._shards: Sequence[Shard] = ()
        self._stand_in = False
        self._entered: int | None = None

    def alone(self, order: range) -> RankShards:
        """Returns shards of this rank alone that it has in another order; to be closed by `threads.close`."""
        return RankShards(Alone(order), share=self._share, seed=self._seed)

    @property
    def samples(self) -> list[int]:
        """How many samples each shard of this rank has in the running batch."""
        return [shard.samples for shard in self._shards]

    @property
    def cuts(self) -> Shards:
        """How the loader cuts a micro-batch."""
        return Shards(self.exchange.shards, self.exchange.own)

    def attach(
        self,
        module: LightningModule,
        make_gradients: Callable[[Mapping[str, nn.Parameter], Exchange], ShardGradients] = ShardGradients,
    ) -> None:
        """Takes the module that is to be trained or tested; its parameters are on their device."""
        self._module = module
        self.gradients = make_gradients(_trained(module), self.exchange)
        self.state = ShardState(module, self.exchange, self.gradients, self._seed)
        self._layers = [layer for layer in module.modules() if isinstance(layer, SyncBatchNorm)]

    def _begin_gradients(self, module: LightningModule) -> None:
        """Takes over what callbacks have unfrozen."""
        parameters = {
            name: each
            for name, each in module.named_parameters()
            if each.requires_grad or each in self.gradients
        }
        if not self.gradients.is_of(parameters):
            self.gradients.detach()
            self.gradients = ShardGradients(parameters, self.exchange)
            self.state.use(self.gradients)

    def detach(self) -> None:
        """Gives the module back as it was."""
        if self._module is not None:
            self.state.metrics.detach()
            self.gradients.detach()
            self._module = None

    def state_dict(self) -> dict[str, Any]:
        """Returns what is to be saved of all shards. Collective."""
        ranks = self.exchange.of_ranks(self.state.metrics.state_dict())
        return {"metrics": {number: states for rank in ranks for number, states in rank.items()}}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Takes a saved state, for `restore_metrics`."""
        self._saved = dict(saved)

    def restore_metrics(self) -> None:
        """Gives metrics the states that were loaded, if they were."""
        if "metrics" in self._saved:
            self.state.metrics.load_state_dict(self._saved.pop("metrics"))

    def run(
        self, batch: ShardedBatch, step: Callable[[Any], T], *, where: Sequence[int], trains: bool
    ) -> list[T]:
        """Calls step(batch) for each shard, each in a thread of its own; returns what they return.

        where: what tells the step from all others, equal on all ranks.
        """
        self._shards = batch.shards
        self._stand_in = any(shard.stands_in for shard in batch.shards)
        if trains:
            assert self._module is not None
            self._begin_gradients(self._module)
        self.state.begin(*where)
        with ExitStack() as stack:
            if trains:
                self._layers_over_shards = OverShards(self.threads, self.exchange)
                stack.enter_context(over_parts(self._layers_over_shards))
            mode = torch.is_inference_mode_enabled(), torch.is_grad_enabled()
            calls = zip(batch.shards, self.exchange.own, strict=True)
            results = self.threads.run([self._call(mode, step, shard, number) for shard, number in calls])
        self.state.check()
        return results

    def once_for_all(self, place: str, value: Any, joint: Callable[[list[Any]], Any]) -> Any:
        """Calls joint(values of this rank's shards) outside of the shards; returns what it returns to all.

        Call it in the threads of all shards, with equal words for the place.
        """

        def checked(values: list[Any]) -> list[Any]:
            self.state.check()
            return [joint(values)] * len(values)

        return self.threads.meet_outside(place, value, checked)

    def _call(
        self, mode: tuple[bool, bool], step: Callable[[Any], T], shard: Shard, number: int
    ) -> Callable[[], T]:
        call = _in_mode(mode, step, shard.batch)

        def explained() -> T:
            try:
                return call()
            except Exception as error:
                if not (shard.samples or shard.stands_in or isinstance(error, TrainingError)):
                    error.add_note(
                        f"Shard {number} has no sample of this batch, because it has fewer samples than "
                        f"there are shards ({self.exchange.shards}). Make the step accept tensors of length "
                        "0 (test len(x)), or use fewer shards (training.shards), or a batch size that leaves "
                        "a larger last batch (training.global_batch_size; for validation and test "
                        "training.eval_batch_size), or, for training, set training.drop_last."
                    )
                raise

        return explained

    @contextmanager
    def in_backward(self, loss: Tensor) -> Iterator[None]:
        """A context for a backward pass of a step, in which layers cannot be computed again."""

        def check(_: Tensor) -> None:
            self._layers_over_shards.check_reached()

        hook = loss.register_hook(check)  # type: ignore[no-untyped-call]
        try:
            with over_parts(NoRecomputation()):
                yield
        finally:
            hook.remove()

    def end_step(self) -> None:
        """Logs what the shards have logged, and gives all of them the same buffers. Collective."""
        changed = self.state.changed_buffers()
        own = [[digest, changed] for digest in self.logs.digests()]
        digests, changes = self.exchange.rows(torch.tensor(own, dtype=torch.float64)).unbind(1)
        if digests.any():
            self.logs.log_step(same=bool((digests == digests[0]).all()))
        if changes.any():
            self.state.keep_buffers(self.samples)

    def _enter(self, index: int) -> None:
        self.state.enter(index)
        if index == self._entered:
            return
        self._entered, shard = index, self._shards[index]
        self.state.metrics.ignores = not shard.samples
        self._share.samples = shard.samples
        if isinstance(self._module, Supervised):
            self._module.samples = shard.samples
        if self._stand_in:
            for layer in self._layers:
                layer.counts_samples = not shard.stands_in

    def _leave(self) -> None:
        self._entered = None
        self.state.leave()
        for layer in self._layers:
            layer.counts_samples = True


def _trained(module: nn.Module) -> dict[str, nn.Parameter]:
    return {name: each for name, each in module.named_parameters() if each.requires_grad}


def _in_mode(mode: tuple[bool, bool], step: Callable[[Any], T], batch: Any) -> Callable[[], T]:
    """Returns a call of `step` for another thread that records gradients as this one does."""

    def call() -> T:
        inference, gradients = mode
        with torch.inference_mode(inference) if inference else torch.set_grad_enabled(gradients):
            return step(batch)

    return call
