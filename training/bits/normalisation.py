"""SyncBatchNorm over shards: the statistics of all, added in the order of the shards.

A layer is one operation for all shards of a rank: its inputs and outputs are those of all of them. Forward it
adds up their sums; backward it waits for the gradients of all outputs, and adds up the sums of these
gradients, which the input's gradient needs.

    x of a shard ──┐                                                      ┌── z of this shard
                   ├── sums by shard ── sum over shards ── normalised ────┤
    x of the next ─┘                                                      └── z of the next
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from sync_bn._arithmetic import LocalGradients, Moments
from sync_bn._function import Call, Normalised, Tensors, passes_for, passes_for_gradient
from training import internals
from training.bits.exchange import Exchange
from training.bits.threads import ShardThreads
from training.errors import StepError


class OverShards:
    """Computes SyncBatchNorm layers in the threads of shards, in place of the layer's own collectives."""

    def __init__(self, threads: ShardThreads, exchange: Exchange) -> None:
        self._threads, self._exchange = threads, exchange
        self._nodes: list[tuple[str, Callable[[], Any]]] = []
        """The sums over shards of this step: their place, and what gives their node while it is needed."""

    @property
    def updates(self) -> bool:
        """Whether the running shard is the one that updates the running statistics of this rank."""
        return self._threads.running == 0

    def __call__(self, tensors: Tensors, call: Call) -> Normalised:
        """Returns the layer's output for the running shard. Called by the layer."""
        place = f"SyncBatchNorm({tensors.x.shape[1]})"
        z, moments = self._threads.meet(place, (tensors, call), partial(self._of_all, place))
        return Normalised(z, moments, None)

    def _of_all(self, place: str, shards: list[tuple[Tensors, Call]]) -> list[tuple[Tensor, Moments]]:
        parts = [_Part(call) for _, call in shards]
        tensors = chain.from_iterable(tensors for tensors, _ in shards)
        outputs: tuple[Tensor, ...] = _Layer.apply(self._threads, self._exchange, parts, *tensors)  # type: ignore[no-untyped-call]
        node = outputs[0].grad_fn
        self._nodes.append((place, weakref.ref(node) if node is not None else lambda: None))
        return [(z, part.moments) for z, part in zip(outputs, parts, strict=True)]

    def check_reached(self) -> None:
        """Raises StepError on all ranks if a backward pass reaches a layer on some ranks alone. Collective.

        Call it in a hook of the pass, which would wait for the other ranks forever.
        """
        if self._exchange.world_size == 1 or not self._nodes:
            return
        nodes = [node() for _, node in self._nodes]
        reached = [node is not None and internals.backward_reaches(node) for node in nodes]
        ranks = torch.tensor(reached, dtype=torch.int64)
        dist.all_reduce(ranks)
        for (place, _), number in zip(self._nodes, ranks.tolist(), strict=True):
            if 0 < number < self._exchange.world_size:
                raise StepError(
                    f"the loss depends on the output of {place} in some shards of a batch, and on "
                    f"{self._exchange.world_size - number} of {self._exchange.world_size} workers in none; "
                    "let it depend on it in every shard, for example by adding 0 * output.sum()"
                )


class NoRecomputation:
    """In a backward pass: SyncBatchNorm layers cannot run again, because the other shards would not."""

    updates = False

    def __call__(self, tensors: Tensors, call: Call) -> Normalised:  # noqa: ARG002
        raise StepError(
            f"SyncBatchNorm({tensors.x.shape[1]}) is computed again in the backward pass, by "
            "torch.utils.checkpoint, which training.reproducible: bits does not cover; leave the layer out "
            "of what is checkpointed, or set training.reproducible to curve"
        )


class _Part:
    """One shard's part in a layer: what the passes over its values leave for the next."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._passes: Any = None
        self._coefficients: Any = None
        self._gradients: tuple[Any, Any, LocalGradients] | None = None
        self.moments: Moments

    def sums(self, tensors: Tensors) -> Tensor:
        """Returns [Σx, Σx², n]."""
        self._passes = passes_for(tensors, self._call)
        sums: Tensor = self._passes.local_sums(tensors.x, tensors.w)
        return sums

    def normalise(self, tensors: Tensors, total: Tensor) -> Tensor:
        """Returns the output, given the sums of all shards."""
        x, weight, bias, residual, _ = tensors
        z: Tensor
        z, self.moments, self._coefficients = self._passes.normalise(
            x, total, self._call.eps, weight, bias, residual, self._call.activation
        )
        return z

    def to_save(self, tensors: Tensors) -> Tensors:
        """Returns the tensors that gradients depend on."""
        residual = tensors.residual
        if residual is None or self._call.activation is not None:
            return tensors
        # No derivative depends on its values.
        return tensors._replace(residual=residual.new_zeros(()).expand_as(residual))

    def gradient_sums(self, dz: Tensor | None, tensors: Tensors) -> Tensor:
        """Returns [Σdy, Σdy·x̂]. dz: None if the loss does not depend on this shard's output."""
        x, weight, _, residual, _ = tensors
        dz = torch.zeros_like(x) if dz is None else dz
        passes, coefficients = passes_for_gradient(
            self._passes, self._coefficients, dz, x, weight, residual, self._call
        )
        local: LocalGradients = passes.local_gradient_sums(
            dz, x, coefficients, residual, self._call.activation
        )
        self._gradients = passes, coefficients, local
        return local.sums

    def gradients(self, tensors: Tensors, total: Tensor, needed: Sequence[bool]) -> tuple[Tensor | None, ...]:
        """Returns the gradients of the tensors, given the gradient sums of all shards; None if not needed."""
        x, weight, bias, residual, w = tensors
        assert self._gradients is not None
        (passes, coefficients, local), self._gradients = self._gradients, None
        grad_bias, grad_weight = local.sums.chunk(2)
        n = self.moments.n
        return (
            passes.input_gradient(local, x, coefficients, n, weight, total, w) if needed[0] else None,
            grad_weight.to(weight.dtype, copy=True) if weight is not None and needed[1] else None,
            grad_bias.to(bias.dtype, copy=True) if bias is not None and needed[2] else None,
            local.dy.to(residual.dtype) if residual is not None and needed[3] else None,
            None,
        )


class _Layer(torch.autograd.Function):
    """The outputs of a layer for all shards of this rank, given the `Tensors` of all, one after another."""

    @staticmethod
    def forward(
        ctx: Any, threads: ShardThreads, exchange: Exchange, parts: Sequence[_Part], *tensors: Tensor | None
    ) -> tuple[Tensor, ...]:
        pairs = list(zip(parts, _by_shard(tensors), strict=True))
        total = exchange.sum(torch.stack([part.sums(of_shard) for part, of_shard in pairs]))
        outputs = tuple(part.normalise(of_shard, total) for part, of_shard in pairs)
        ctx.save_for_backward(*chain.from_iterable(part.to_save(of_shard) for part, of_shard in pairs))
        ctx.threads, ctx.exchange, ctx.parts = threads, exchange, parts
        ctx.set_materialize_grads(False)
        return outputs

    @staticmethod
    def backward(ctx: Any, *dzs: Tensor | None) -> tuple[Any, ...]:
        if ctx.threads.running is not None or torch.is_grad_enabled():
            raise StepError(
                "a step computes gradients through a SyncBatchNorm layer by itself (torch.autograd.grad), "
                "which training.reproducible: bits does not cover; leave such layers out of it, or set "
                "training.reproducible to curve"
            )
        shards = list(zip(ctx.parts, _by_shard(ctx.saved_tensors), strict=True))
        own = [part.gradient_sums(dz, of_shard) for dz, (part, of_shard) in zip(dzs, shards, strict=True)]
        total = ctx.exchange.sum(torch.stack(own))
        needed = _by_shard(ctx.needs_input_grad[3:])
        gradients = (
            part.gradients(of_shard, total, needs)
            for (part, of_shard), needs in zip(shards, needed, strict=True)
        )
        return None, None, None, *chain.from_iterable(gradients)


def _by_shard(values: Sequence[Any]) -> list[Tensors]:
    """Returns values of all shards, one after another, for each shard."""
    fields = len(Tensors._fields)
    return [Tensors(*values[start : start + fields]) for start in range(0, len(values), fields)]
