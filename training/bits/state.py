"""What each shard of a rank has for itself while its thread runs."""

from __future__ import annotations

import logging
import operator
import struct
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchmetrics import Metric

from training import internals
from training.bits.attributes import ShardAttributes
from training.bits.exchange import Exchange
from training.bits.gradients import ShardGradients
from training.bits.metrics import ShardMetrics
from training.errors import StepError
from training.loading.generators import generator_states, seed_globally, seeds_of, set_generator_states
from training.model.nonfinite import public_name

log = logging.getLogger(__name__)


class ShardState:
    """The parts of a module that differ between the shards while a step runs, put in place in turn.

    Shards run from an `enter` until the next `leave`, perhaps several times in a step. At other times the
    module has what it has outside, and what hooks do to it then is done to all shards.

    - parameters: others with the same memory, so that gradients arrive by shard;
    - buffers that a forward may change, BatchNorm's excepted: every shard starts from the same, and those of
      the first shard of all are kept;
    - torch's default dtype, which Lightning's double precision sets while a step runs;
    - states of metrics, and plain attributes of a user's modules;
    - random numbers: drawn anew for each shard from (seed, step, shard) whenever it goes on.
    """

    def __init__(self, module: nn.Module, exchange: Exchange, gradients: ShardGradients, seed: int) -> None:
        self._module, self._exchange, self._seed = module, exchange, seed
        self.metrics = ShardMetrics(module, exchange)
        self._attributes = ShardAttributes(module, len(exchange.own))
        self.use(gradients)
        self._recurrent = [part for part in module.modules() if isinstance(part, nn.RNNBase)]
        self._buffers = [
            (part, name, buffer)
            for part in module.modules()
            if not isinstance(part, _BatchNorm | Metric)
            for name, buffer in part._buffers.items()
            if buffer is not None
        ]
        self._copies = [[buffer.clone() for *_, buffer in self._buffers] for _ in exchange.own]
        self._seen = [internals.changes_in_place(buffer) for *_, buffer in self._buffers]
        self._entered: int | None = None
        self._before: list[list[int]] = []
        self._weights: list[tuple[str, nn.Parameter]] = []
        self._shared: list[tuple[int, bool]] = []
        self._changed = ""
        self._buffers_told = False
        self._where = b""
        self._segments: list[int] = []
        self._outside: Any = None

    def use(self, gradients: ShardGradients) -> None:
        """Takes the parameters of the shards from `gradients`, which may be of others than before."""
        slots = [
            (part._parameters, name, parameter)
            for part in self._module.modules()
            for name, parameter in part._parameters.items()
            if parameter is not None and parameter in gradients
        ]
        self._gradients, self._own_slots = gradients, slots
        self._slots_of_shard = [
            [(parameters, name, leaves[parameter]) for parameters, name, parameter in slots]
            for leaves in gradients.of_shard
        ]

    def begin(self, *where: int) -> None:
        """Begins a step. where: what tells it from others, equal on all ranks."""
        self._where = struct.pack(f"<Q{len(where)}q", self._seed, *where)
        self._segments = [0] * len(self._exchange.own)
        self._dtypes = [torch.get_default_dtype() for _ in self._exchange.own]
        self._weights = list(self._module.named_parameters())

    def _take_over(self) -> None:
        """Keeps what there is outside of the shards, and gives them what hooks have done to it."""
        self._outside = generator_states()
        self._outside_dtype = torch.get_default_dtype()
        self._attributes.begin()
        self._take_changes()
        if not any(self._segments):
            self._before = self._versions()
        self._gradients.show()
        self._shared = self._shared_by_shards()

    def _shared_by_shards(self) -> list[tuple[int, bool]]:
        return [(internals.changes_in_place(each), each.requires_grad) for _, each in self._weights]

    def _take_changes(self) -> None:
        """Gives the shards what hooks have done to buffers outside of them."""
        for index, (part, name, buffer) in enumerate(self._buffers):
            now = part._buffers[name]
            assert now is not None
            if now is not buffer or internals.changes_in_place(now) != self._seen[index]:
                self._buffers[index] = part, name, now
                self._spread(index)

    def _spread(self, index: int) -> None:
        buffer = self._buffers[index][2]
        self._seen[index] = internals.changes_in_place(buffer)
        for copies in self._copies:
            copies[index] = buffer.clone()

    def _versions(self) -> list[list[int]]:
        return [[internals.changes_in_place(copy) for copy in copies] for copies in self._copies]

    def enter(self, shard: int) -> None:
        """Puts the parts of a shard of this rank in place, given by its index."""
        if self._entered is None:
            self._take_over()
        if not self._segments[shard]:
            self.metrics.find()  # an earlier shard's step may have made some
        if self._entered != shard:
            self._keep_own()
            self._entered = shard
            if torch.get_default_dtype() is not self._dtypes[shard]:
                torch.set_default_dtype(self._dtypes[shard])
            self._put_parameters(self._slots_of_shard[shard])
            for (part, name, _), copy in zip(self._buffers, self._copies[shard], strict=True):
                part._buffers[name] = copy
            self._attributes.enter(shard)
        self.metrics.enter(shard)
        number = self._exchange.own[shard]
        origin = self._where + struct.pack("<QQ", number, self._segments[shard])
        self._segments[shard] += 1
        seeds = seeds_of(origin)
        seed_globally(seeds)
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            torch.cuda.manual_seed(seeds.own % 2**63)

    def leave(self) -> None:
        """Puts back what the module has outside of the shards. Does nothing if none has been entered."""
        if self._entered is None:
            return
        self._keep_own()
        self._entered = None
        torch.set_default_dtype(self._outside_dtype)
        self._put_parameters(self._own_slots)
        for part, name, buffer in self._buffers:
            part._buffers[name] = buffer
        self._attributes.leave()
        self.metrics.leave()
        if (now := self._shared_by_shards()) != self._shared:
            pairs = zip(self._weights, map(operator.ne, now, self._shared), strict=True)
            self._changed = next(name for (name, _), is_changed in pairs if is_changed)
        self._gradients.hide()
        set_generator_states(self._outside)

    def check(self) -> None:
        """Raises StepError if a shard has changed what all of them share. Call it after `leave`."""
        self._gradients.check()
        name, self._changed = self._changed, ""
        if name:
            raise StepError(
                f"a step changes the parameter {name} in place, or unfreezes it, but training.reproducible: "
                "bits runs it once for each of several shards; do it in a callback (on_train_batch_end), or "
                "set training.reproducible to curve"
            )

    def _put_parameters(self, slots: Sequence[tuple[dict[str, Any], str, nn.Parameter]]) -> None:
        for parameters, name, parameter in slots:
            parameters[name] = parameter
        for part in self._recurrent:
            internals.set_flat_weights(part)

    def _keep_own(self) -> None:
        """Keeps the default dtype, and the tensors that the running shard has put in the place of buffers."""
        if self._entered is None:
            return
        self._dtypes[self._entered] = torch.get_default_dtype()
        for index, (part, name, buffer) in enumerate(self._buffers):
            now, copies = part._buffers.get(name), self._copies[self._entered]
            if now is copies[index]:
                continue
            if now is None or now.shape != buffer.shape or now.dtype != buffer.dtype:
                raise StepError(
                    f"a step gives the buffer {name!r} of {type(part).__name__} another shape or dtype, "
                    "which training.reproducible: bits does not cover; keep them, or set "
                    "training.reproducible to curve"
                )
            copies[index] = now.detach().clone()
            self._before[self._entered][index] = -1

    def changed_buffers(self) -> bool:
        """Returns whether a shard of this rank has changed a buffer in this step."""
        return self._before != self._versions()

    def buffers(self) -> list[list[tuple[nn.Module, str, Tensor]]]:
        """Returns the buffers of each shard of this rank: their module, their name, and their value."""
        return [
            [(part, name, copy) for (part, name, _), copy in zip(self._buffers, copies, strict=True)]
            for copies in self._copies
        ]

    def keep_buffers(self, samples: Sequence[int]) -> None:
        """Gives all shards the buffers that the first one with samples has, where any has changed it.

        Collective. samples: of this rank's shards. The graphs of the shards keep their own.
        """
        pairs = zip(self._before, self._versions(), samples, strict=True)
        own = [[count, *map(operator.ne, before, now)] for before, now, count in pairs]
        table = self._exchange.rows(torch.tensor(own, dtype=torch.int64))
        changed = table[:, 1:].any(0).tolist()
        first = int(table[:, 0].bool().int().argmax())
        source = self._exchange.owner(first)
        unlike: list[int] = []
        for index in (index for index, is_changed in enumerate(changed) if is_changed):
            buffer = self._buffers[index][2]
            with torch.no_grad():
                if first in self._exchange.own:
                    buffer.copy_(self._copies[self._exchange.own.index(first)][index])
                if self._exchange.world_size > 1:
                    dist.broadcast(buffer, source)
            if not self._buffers_told:
                counted = zip(self._copies, samples, strict=True)
                copies = [copies[index] for copies, count in counted if count]
                unlike += [index] if any(not torch.equal(copy, buffer) for copy in copies) else []
            self._spread(index)
        if not self._buffers_told:
            self._buffers_told = True
            self._tell_unlike(unlike)

    def _tell_unlike(self, unlike: Sequence[int]) -> None:
        """Warns on rank 0 of buffers that the shards of this rank have left unlike that which is kept."""
        ranks: list[Sequence[int]] = self._exchange.of_ranks(unlike)
        for index in sorted({index for rank in ranks for index in rank}) if self._exchange.rank == 0 else ():
            part, name, _ = self._buffers[index]
            path = next(path for path, each in self._module.named_modules() if each is part)
            log.warning(
                "a step changes the buffer %s by the samples of a shard; training.reproducible: bits keeps "
                "that of the first of %s shards, so that samples of the others do not count in it",
                public_name(f"{path}.{name}".lstrip(".")),
                self._exchange.shards,
            )
