"""A step on one worker before the first one, in two ways, which must compute the same to the last bit.

What makes a model depend on how the shards are dealt cannot be seen in its code. So each rank runs its shards
of the first batch by itself, in their order, and then in the opposite order and as if it were another rank.
Every shard then has other shards before it, in another thread, on another worker: as after a resize. All that
its modules compute must be equal. If it is not, the first module that computes something else is named.

Each rank does so for itself, without communication, and only tells the others in the end what it has found:
they would wait for one rank in any case, and each has other samples. So statistics over the batch are those
of the rank's own shards. A rank with one shard takes it twice, so that there is another one before it.

All is put back as it was: see `training.bits.snapshot`. Only what a step does outside of its process is done
once more in each way, such as a line that it prints.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from copy import deepcopy
from dataclasses import replace
from functools import partial
from typing import Any

from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from training.bits.attributes import users_modules
from training.bits.checksums import Checksum, checksum
from training.bits.loss import ShardLoss, losses_of
from training.bits.mixing import ROUNDING, ROUNDING_OF_HALF, mixing
from training.bits.observed import OF_ALL, HashedGradients, Observed, difference
from training.bits.shards import RankShards
from training.bits.snapshot import Snapshot
from training.errors import StepError
from training.loading.sharded import Shard, ShardedBatch
from training.model.nonfinite import public_name

log = logging.getLogger(__name__)

_REPEATED = (
    "in a step that is run again",
    "it draws from a generator that is not seeded, reads the time, or uses an operation that is not "
    "deterministic; draw from torch's default generator, or use another operation "
    "(torch.use_deterministic_algorithms names those of torch)",
)
_WORKER = "on another worker", "let it not depend on the rank or the number of workers"
_ORDER = (
    "after other shards",
    "it keeps something from one shard to the next, in a list, a dict, a closure or a generator of its own, "
    "or makes a layer when it is first called; keep it in a buffer, or in an attribute that is a number or a "
    "tensor, draw from torch's default generator, and make layers in __init__",
)
_CHANGED = (
    "a step changes the weight {name} by itself, which training.reproducible: bits runs once for each shard; "
    "change weights in on_before_optimizer_step, leave out max_norm of an embedding, or set "
    "training.reproducible to curve"
)

Numbers = dict[tuple[int, str], float]


class DryStep:
    """A step of a module on this rank by itself. batch, step, where: as in `RankShards.run`.

    optimized: a context for a step of such shards with such a loss, in which optimizers do nothing.
    elsewhere: a context in which this rank seems to be another one. doing: is told what is about to be done.
    """

    def __init__(
        self,
        shards: RankShards,
        loss: ShardLoss,
        module: LightningModule,
        batch: ShardedBatch,
        step: Callable[[Any], Any],
        where: Sequence[int],
        *,
        optimized: Callable[[RankShards, ShardLoss], AbstractContextManager[None]],
        elsewhere: Callable[[], AbstractContextManager[None]],
        doing: Callable[[str], None],
    ) -> None:
        self._shards, self._loss, self._module, self._step = shards, loss, module, step
        self._where, self._optimized, self._elsewhere, self._doing = where, optimized, elsewhere, doing
        self._batches = batch.shards if len(batch.shards) > 1 else [*batch.shards, *batch.shards]
        self._other: Numbers = {}

    def check(self) -> None:
        """Raises StepError, on all ranks alike, if the step depends on how shards are dealt. Collective.

        Changes nothing. If the step fails in its usual way, there is nothing to compare, and it will fail
        again when it is made.
        """
        exchange = self._shards.exchange
        ranks: list[Numbers] = exchange.of_ranks(_numbers(self._module))
        self._other = ranks[(exchange.rank + 1) % exchange.world_size]
        found = self._found()
        self._doing("dry step: waiting for other workers")
        told: list[str] = exchange.of_ranks(found)
        if text := next(filter(None, told), ""):
            raise StepError(text)

    def _found(self) -> str:
        """Returns the message of what is found; "" if nothing is."""
        module, order = self._module, range(len(self._batches))
        self._shards.state.metrics.detach()  # they are found again in the next step
        self._snapshot = Snapshot(module, *_groups(module))
        weights = _weights(module)
        first = self._run(order)
        if first.error:
            log.warning("no dry step: %s", first.error)
            return ""
        if changed := [name for name, number in _weights(module).items() if weights[name] != number]:
            return _CHANGED.format(name=changed[0])
        text = difference(first, self._run(order[::-1], elsewhere=True))
        if not text:
            self._tell_mixing()
            return ""
        for cause, elsewhere in ((_REPEATED, False), (_WORKER, True)):
            if again := difference(first, self._run(order, elsewhere=elsewhere)):
                return refusal(again, *cause)
        return refusal(text, *_ORDER)

    def _tell_mixing(self) -> None:
        """Warns if the loss is not a mean over samples; what else it is, it is within each shard."""
        exchange, is_half = self._shards.exchange, "16" in str(self._module.trainer.precision)
        if exchange.rank or not self._module.automatic_optimization:
            return
        if text := mixing(self._batches, self._loss_of, ROUNDING_OF_HALF if is_half else ROUNDING):
            log.warning("%s", text.format(shards=exchange.shards))

    def _loss_of(self, own: Sequence[Shard], number: int) -> float | None:
        """Returns the loss of shards without Dropout; the number decides what else is drawn."""
        module = self._module
        with self._apart(range(len(own))) as (shards, loss):
            for part in module.modules():
                part.training &= not isinstance(part, _DropoutNd)
            shards.attach(module)
            module.log = lambda *_, **__: None  # type: ignore[method-assign]
            batch = ShardedBatch([replace(shard, batch=deepcopy(shard.batch)) for shard in own])
            with loss.in_shards(module.device), self._optimized(shards, loss):
                outputs = shards.run(batch, self._step, where=[*self._where, number], trains=True)
            total = loss.total(losses_of(outputs), [shard.samples for shard in own])
        return None if total is None else float(total.detach())

    def _run(self, order: range, *, elsewhere: bool = False) -> Observed:
        """Runs the shards in an order, and puts all back that they change."""
        self._doing(f"dry step of {len(order)} shards")
        with self._apart(order) as (shards, loss), ExitStack() as stack:
            observed = Observed(self._module, lambda: _of(order, shards.threads.running))
            if elsewhere:
                stack.enter_context(self._elsewhere())
                _set_numbers(self._module, self._other)
            try:
                with observed:
                    self._pass(shards, loss, observed, [self._batches[number] for number in order])
            except Exception as error:
                observed.failed(error)
        return observed

    @contextmanager
    def _apart(self, order: range) -> Iterator[tuple[RankShards, ShardLoss]]:
        """Yields shards of this rank alone, with their loss, and puts all back that a step changes."""
        shards = self._shards.alone(order)
        loss = self._loss.over(shards.exchange, shards.threads)
        share, trainer = self._loss.share, self._module.trainer
        with ExitStack() as stack:
            stack.callback(setattr, share, "samples", share.samples)
            stack.callback(setattr, trainer, "should_stop", trainer.should_stop)
            stack.callback(self._snapshot.restore)
            stack.callback(
                _restore, [(each, each.requires_grad, each.grad) for each in self._module.parameters()]
            )
            stack.callback(shards.threads.close)
            stack.callback(shards.detach)
            yield shards, loss

    def _pass(self, shards: RankShards, loss: ShardLoss, observed: Observed, own: Sequence[Any]) -> None:
        module, order = self._module, shards.exchange.own
        batch = ShardedBatch([replace(shard, batch=deepcopy(shard.batch)) for shard in own])
        shards.attach(module, partial(HashedGradients, observed))
        module.log = observed.log  # type: ignore[method-assign]

        def step(batch: Any) -> Any:
            output, shard = self._step(batch), _of(order, shards.threads.running)
            assert shard is not None
            observed.rates(shard, module.trainer.optimizers)
            return output

        with loss.in_shards(module.device), self._optimized(shards, loss):
            outputs = shards.run(batch, step, where=self._where, trains=True)
        self._observe_end(shards, observed, outputs)
        total = loss.total(losses_of(outputs), [shard.samples for shard in own])
        if total is not None:
            with shards.in_backward(total):
                total.backward()  # type: ignore[no-untyped-call]

    def _observe_end(self, shards: RankShards, observed: Observed, outputs: Sequence[Any]) -> None:
        order = shards.exchange.own
        metrics = shards.state.metrics.state_dict()
        for shard, output, buffers in zip(order, outputs, shards.state.buffers(), strict=True):
            for part, name, value in buffers:
                observed.buffer(shard, part, name, value)
            observed.outputs(shard, output)
            for name, state in metrics[shard].items():
                observed.metric(shard, name, state["state"])
        for part in self._module.modules():
            if isinstance(part, _BatchNorm):
                for name, value in part.named_buffers(recurse=False):
                    observed.buffer(OF_ALL, part, name, value)


def _restore(parameters: Sequence[tuple[nn.Parameter, bool, Tensor | None]]) -> None:
    for parameter, needs_gradient, gradient in parameters:
        parameter.requires_grad_(needs_gradient)
        parameter.grad = gradient


def _of(order: range, index: int | None) -> int | None:
    return None if index is None else order[index]


def _groups(module: LightningModule) -> list[Any]:
    return [group for optimizer in module.trainer.optimizers for group in optimizer.param_groups]


def _weights(module: nn.Module) -> dict[str, Checksum]:
    return {public_name(name): checksum(weight) for name, weight in module.named_parameters()}


def _numbers(module: nn.Module) -> Numbers:
    """Returns the numbers that a user's modules keep as attributes, by the module's number and the name."""
    return {
        (index, name): value
        for index, part in enumerate(users_modules(module))
        for name, value in vars(part).items()
        if type(value) in (int, float, bool)
    }


def _set_numbers(module: nn.Module, numbers: Numbers) -> None:
    parts = users_modules(module)
    for index, name in numbers.keys() & _numbers(module).keys():
        vars(parts[index])[name] = numbers[index, name]


def refusal(text: str, when: str, way_out: str) -> str:
    """Returns the message for what depends on the workers. text: what differs, with its verb."""
    return (
        f"{text} {when}, so training.reproducible: bits would not give the same weights on any number of "
        f"workers: {way_out}; or set training.reproducible to curve"
    )
