"""SyncBatchNorm over shards: the statistics of all, added in the order of the shards.

A layer is three operations in the graph of a shard, of which the middle one is common to all shards of a
rank. Forward it adds up their sums; backward it adds up the sums of their gradients, which the input's
gradient needs. So a backward pass in one thread has the sums of all shards before the first of them goes on.

    x ── sums ──┐                     ┌── normalised ── z
                ├── sum over shards ──┤
    x ── sums ──┘                     └── normalised ── z
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

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
        shard = _Shard(tensors, call)
        sums = _Sums.apply(tensors.x, tensors.w, shard)  # type: ignore[no-untyped-call]
        place = f"SyncBatchNorm({tensors.x.shape[1]})"
        total = self._threads.meet(place, sums, partial(self._sum, place))
        x, weight, bias, residual, _ = tensors
        z, mean, var, n = _Normalised.apply(x, weight, bias, residual, total, shard)  # type: ignore[no-untyped-call]
        return Normalised(z, Moments(mean, var, n), None)

    def _sum(self, place: str, sums: list[Tensor]) -> tuple[Tensor, ...]:
        total: tuple[Tensor, ...] = _SumOverShards.apply(self._threads, self._exchange, *sums)  # type: ignore[no-untyped-call]
        node = total[0].grad_fn
        self._nodes.append((place, weakref.ref(node) if node is not None else lambda: None))
        return total

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


class _Shard:
    """What the operations of one shard in one layer share."""

    def __init__(self, tensors: Tensors, call: Call) -> None:
        self.call, self.passes = call, passes_for(tensors, call)
        self.coefficients: Any = None
        self.n: Tensor | None = None
        self.weight: Tensor | None = None
        self.gradients: tuple[Any, Any, LocalGradients] | None = None


class _Sums(torch.autograd.Function):
    """x -> [Σx, Σx², n]. Its backward gets the gradient sums of all shards, and gives that of x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor | None, shard: _Shard) -> Tensor:
        ctx.save_for_backward(x, w)
        ctx.shard = shard
        sums: Tensor = shard.passes.local_sums(x, w)
        return sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, total: Tensor) -> tuple[Tensor | None, None, None]:
        x, w = ctx.saved_tensors
        shard: _Shard = ctx.shard
        if shard.gradients is None:  # the loss does not depend on this shard's output
            _local_gradients(shard, torch.zeros_like(x), x, None)
        assert shard.gradients is not None
        (passes, coefficients, local), shard.gradients = shard.gradients, None
        dx = passes.input_gradient(local, x, coefficients, shard.n, shard.weight, total[:-1], w)
        return dx, None, None


class _SumOverShards(torch.autograd.Function):
    """Adds the shards' numbers, forward and backward; every shard gets the sum."""

    @staticmethod
    def forward(ctx: Any, threads: ShardThreads, exchange: Exchange, *own: Tensor) -> tuple[Tensor, ...]:
        ctx.threads, ctx.exchange = threads, exchange
        return _for_each(exchange.sum(torch.stack(own)), len(own))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *own: Tensor) -> tuple[Any, ...]:
        if ctx.threads.running is not None:
            raise StepError(
                "a step computes gradients through a SyncBatchNorm layer by itself (torch.autograd.grad), "
                "which training.reproducible: bits does not cover; leave such layers out of it, or set "
                "training.reproducible to curve"
            )
        return None, None, *_for_each(ctx.exchange.sum(torch.stack(own)), len(own))


def _for_each(total: Tensor, shards: int) -> tuple[Tensor, ...]:
    return total, *(total.clone() for _ in range(shards - 1))


class _Normalised(torch.autograd.Function):
    """The output, given the sums of all shards. The "gradient" of these sums is [Σdy, Σdy·x̂, 0]."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        residual: Tensor | None,
        total: Tensor,
        shard: _Shard,
    ) -> tuple[Tensor, ...]:
        call = shard.call
        # The moments may be views of it. As views of the sum itself they would keep the graph below it alive.
        total = total.clone()
        z, moments, shard.coefficients = shard.passes.normalise(
            x, total, call.eps, weight, bias, residual, call.activation
        )
        shard.n, shard.weight = moments.n, weight
        if residual is not None and call.activation is None:
            residual = residual.new_zeros(()).expand_as(residual)  # no derivative depends on its values
        ctx.save_for_backward(x, weight, bias, residual)
        ctx.shard = shard
        ctx.mark_non_differentiable(*moments)
        return z, *moments

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dz: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, residual = ctx.saved_tensors
        shard: _Shard = ctx.shard
        local = _local_gradients(shard, dz, x, residual)
        needs = ctx.needs_input_grad
        grad_bias, grad_weight = local.sums.chunk(2)
        return (
            None,
            grad_weight.to(weight.dtype, copy=True) if weight is not None and needs[1] else None,
            grad_bias.to(bias.dtype, copy=True) if bias is not None and needs[2] else None,
            local.dy.to(residual.dtype) if residual is not None and needs[3] else None,
            torch.cat([local.sums, local.sums.new_zeros(1)]),
            None,
        )


def _local_gradients(shard: _Shard, dz: Tensor, x: Tensor, residual: Tensor | None) -> LocalGradients:
    """Computes a shard's own gradient sums, and keeps them for the gradient of x."""
    passes, coefficients = passes_for_gradient(
        shard.passes, shard.coefficients, dz, x, shard.weight, residual, shard.call
    )
    local: LocalGradients = passes.local_gradient_sums(dz, x, coefficients, residual, shard.call.activation)
    shard.gradients = passes, coefficients, local
    return local
