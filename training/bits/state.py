"""What each shard of a rank has for itself while its thread runs."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchmetrics import Metric

from training import internals
from training.bits.exchange import Exchange
from training.bits.gradients import ShardGradients
from training.bits.metrics import ShardMetrics
from training.errors import StepError
from training.loading.generators import generator_states, seed_globally, seeds_of, set_generator_states


class ShardState:
    """The parts of a module that differ between the shards while a step runs, put in place in turn.

    - parameters: others with the same memory, so that gradients arrive by shard;
    - buffers that a forward may change, BatchNorm's excepted: every shard starts from the same, and those of
      the first shard of all are kept;
    - states of metrics;
    - random numbers: drawn anew for each shard from (seed, step, shard) whenever it goes on.
    """

    def __init__(self, module: nn.Module, exchange: Exchange, gradients: ShardGradients, seed: int) -> None:
        self._exchange, self._seed = exchange, seed
        self.metrics = ShardMetrics(module, exchange)
        slots = [
            (part._parameters, name, parameter)
            for part in module.modules()
            for name, parameter in part._parameters.items()
            if parameter is not None and parameter.requires_grad
        ]
        self._own_slots = slots
        self._slots_of_shard = [
            [(parameters, name, leaves[parameter]) for parameters, name, parameter in slots]
            for leaves in gradients.of_shard
        ]
        self._recurrent = [part for part in module.modules() if isinstance(part, nn.RNNBase)]
        self._buffers = [
            (part, name, buffer)
            for part in module.modules()
            if not isinstance(part, _BatchNorm | Metric)
            for name, buffer in part._buffers.items()
            if buffer is not None
        ]
        self._copies = [[buffer.clone() for *_, buffer in self._buffers] for _ in exchange.own]
        self._kept = self._versions()
        self._entered: int | None = None
        self._where = b""
        self._segments: list[int] = []
        self._outside: Any = None

    def begin(self, *where: int) -> None:
        """Begins a step. where: what tells it from others, equal on all ranks."""
        self._where = struct.pack(f"<Q{len(where)}q", self._seed, *where)
        self._segments = [0] * len(self._exchange.own)
        self._outside = generator_states()

    def enter(self, shard: int) -> None:
        """Puts the parts of a shard of this rank in place, given by its index."""
        if not self._segments[shard]:
            self.metrics.find()  # an earlier shard's step may have made some
        if self._entered != shard:
            self._take_buffers()
            self._entered = shard
            self._put_parameters(self._slots_of_shard[shard])
            for (part, name, _), copy in zip(self._buffers, self._copies[shard], strict=True):
                part._buffers[name] = copy
        self.metrics.enter(shard)
        number = self._exchange.own[shard]
        origin = self._where + struct.pack("<QQ", number, self._segments[shard])
        self._segments[shard] += 1
        seeds = seeds_of(origin)
        seed_globally(seeds)
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            torch.cuda.manual_seed(seeds.own % 2**63)

    def leave(self) -> None:
        """Puts back what the module has outside of a step."""
        self._take_buffers()
        self._entered = None
        self._put_parameters(self._own_slots)
        for part, name, buffer in self._buffers:
            part._buffers[name] = buffer
        self.metrics.leave()
        set_generator_states(self._outside)

    def _put_parameters(self, slots: Sequence[tuple[dict[str, Any], str, nn.Parameter]]) -> None:
        for parameters, name, parameter in slots:
            parameters[name] = parameter
        for part in self._recurrent:
            internals.set_flat_weights(part)

    def _take_buffers(self) -> None:
        """Takes the buffers that the shard has put in place of its own."""
        if self._entered is None:
            return
        copies = self._copies[self._entered]
        for index, (part, name, _) in enumerate(self._buffers):
            now = part._buffers[name]
            if now is not copies[index]:
                if now is None or now.shape != copies[index].shape:
                    raise StepError(
                        f"a step changes the shape of the buffer {name} of {type(part).__name__}, which "
                        "training.reproducible: bits does not cover; keep its shape"
                    )
                copies[index] = now.detach()
                self._kept = []

    def changed_buffers(self) -> bool:
        """Returns whether a shard of this rank has changed a buffer since the last call of `keep_buffers`."""
        return self._versions() != self._kept

    def keep_buffers(self) -> None:
        """Keeps the buffers of the first shard of all, for all of them. Collective."""
        with torch.no_grad():
            for index, (_, _, buffer) in enumerate(self._buffers):
                buffer.copy_(self._copies[0][index])
                if self._exchange.world_size > 1:
                    dist.broadcast(buffer, 0)
                for copies in self._copies:
                    copies[index].copy_(buffer)
        self._kept = self._versions()

    def _versions(self) -> list[int]:
        return [internals.changes_in_place(copy) for copies in self._copies for copy in copies]
