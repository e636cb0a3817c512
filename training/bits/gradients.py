"""Gradients summed exactly: each shard's is rounded to a grid of integers, and integers add in any order.

A float64 sum of the shards' gradients would depend on its order, and so on which worker has which shard.
Here the gradient g of a shard becomes the integer round(g / u), with one unit u, a power of 2, for each
parameter; the integers are added in int64, over shards, micro-batches and ranks.

The unit follows the largest entry m of the last step's sum: u = 2^(e + 14 - 62 + s), where 2^e is the next
power of 2 above m, and 2^s the next one of the number of summands. So entries up to 2^14 m fit into it, and
the error of a sum of k shards is at most k/2 units: k 2^(s - 49) 2^e. An entry that is too large for the grid
goes to one that is coarser by 2^32, and so on. Which one it goes to depends on the entry alone, so the sum is
exact in any order. In the first step m is 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sync_bn import exact
from training.bits.exchange import Exchange
from training.errors import StepError

_BITS = 62
_ROOM = 14
"""Bits above the largest entry of the last step that an entry may have without a coarser grid."""
_COARSER = 32
_SMALLEST = -900
"""Of the exponents, so that no unit is 0 in float64."""


class ShardGradients:
    """The sum of the shards' gradients of each parameter.

    For each shard of this rank it makes parameters that share the memory of the model's: `of_shard`. A
    backward pass through them adds their gradients here, and `finish` gives the sums to the model's own.

    parameters: those that need a gradient, each once, by name. summands: how many gradients are added at
    most, over all shards and micro-batches.

    A gradient that arrives at one of the model's own parameters in a backward pass raises StepError: nobody
    would add it up over shards.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], exchange: Exchange, summands: int) -> None:
        self._names, self._parameters = list(parameters), list(parameters.values())
        self._exchange = exchange
        self.expect(summands)
        self.exponents = dict.fromkeys(self._names, 0)
        """e of each parameter, see above. Part of the state of a run: it is saved and restored."""
        sizes = [parameter.numel() for parameter in self._parameters]
        device = self._parameters[0].device if self._parameters else torch.device("cpu")
        self._flat = torch.zeros(sum(sizes), dtype=torch.int64, device=device)
        self._sums = torch.split(self._flat, sizes)
        self._reached = [0] * len(self._parameters)
        self._extra: dict[tuple[int, int], Tensor] = {}  # by parameter and level; level -1: not finite
        self.of_shard = [self._leaves() for _ in exchange.own]
        self._hooks = [
            parameter.register_post_accumulate_grad_hook(partial(_refuse, name))  # type: ignore[no-untyped-call]
            for name, parameter in parameters.items()
        ]

    def is_of(self, parameters: Mapping[str, nn.Parameter]) -> bool:
        """Returns whether these are the parameters whose gradients are added."""
        pairs = zip(self._parameters, parameters.values(), strict=False)
        return len(parameters) == len(self._parameters) and all(own is other for own, other in pairs)

    def expect(self, summands: int) -> None:
        """Sets how many gradients are added at most until the next `finish`."""
        self._spare = _BITS - max(summands - 1, 1).bit_length()

    @property
    def is_pending(self) -> bool:
        """Whether gradients have been added since the last `finish`."""
        return any(self._reached)

    def detach(self) -> None:
        """Lets the model's own parameters have gradients again."""
        for hook in self._hooks:
            hook.remove()

    def _leaves(self) -> dict[nn.Parameter, nn.Parameter]:
        leaves = {}
        for index, parameter in enumerate(self._parameters):
            leaf = nn.Parameter(parameter.detach())
            leaf.register_post_accumulate_grad_hook(partial(self._add, index))  # type: ignore[no-untyped-call]
            leaves[parameter] = leaf
        return leaves

    def _add(self, index: int, leaf: Tensor) -> None:
        gradient, leaf.grad = leaf.grad, None
        assert gradient is not None
        if gradient.is_sparse:
            raise StepError(
                "training.reproducible: bits does not add sparse gradients; give the layer sparse=False"
            )
        self._reached[index] += 1
        unit, limit = self._grid(index, 0)
        if exact.add_rounded(gradient.detach(), unit, limit, self._sums[index].view_as(gradient)):
            self._add_large(index, gradient.detach().reshape(-1).double())

    def _grid(self, index: int, level: int) -> tuple[int, float]:
        """Returns the exponent of the unit of a grid, and the largest magnitude that fits into it."""
        exponent = min(self._exponent(index) + _ROOM + _COARSER * level, 1023)
        return exponent - self._spare, math.ldexp(1.0, exponent)

    def _exponent(self, index: int) -> int:
        return self.exponents[self._names[index]]

    def _add_large(self, index: int, wide: Tensor) -> None:
        """Adds the entries that are too large for the first grid to others."""
        finite = wide.isfinite()
        if not finite.all():
            self._more(index, -1, wide).add_(torch.where(finite, 0.0, wide))
        rest, level = torch.where(finite, wide, 0.0), 0
        while True:
            unit, limit = self._grid(index, level)
            above = rest.abs() > limit
            if level and not (rest.masked_fill(above, 0.0) == 0).all():
                exact.add_rounded(rest, unit, limit, self._more(index, level, wide))
            rest, level = torch.where(above, rest, 0.0), level + 1
            if not above.any():
                return

    def _more(self, index: int, level: int, like: Tensor) -> Tensor:
        if (index, level) not in self._extra:
            dtype = torch.float64 if level < 0 else torch.int64
            self._extra[index, level] = torch.zeros(like.numel(), dtype=dtype, device=like.device)
        return self._extra[index, level]

    def finish(self) -> None:
        """Gives each parameter the sum of all shards' gradients; None if none has one. Collective."""
        of_level = [0] * len(self._parameters)
        for index, _ in self._extra:
            of_level[index] += 1
        told = torch.tensor([self._reached, of_level], dtype=torch.int64, device=self._flat.device)
        reached, extra = self._all_reduced(told).tolist()
        self._all_reduced(self._flat)
        levels = self._levels() if any(extra) else {}
        for index, parameter in enumerate(self._parameters):
            if not reached[index]:
                parameter.grad = None
                continue
            parameter.grad = self._total(index, levels.get(index, []), parameter.dtype).view_as(parameter)
            largest = float(parameter.grad.abs().max()) if parameter.numel() else 0.0
            if 0 < largest < math.inf:
                self.exponents[self._names[index]] = max(math.frexp(largest)[1], _SMALLEST)
        self._reached = [0] * len(self._parameters)
        self._extra.clear()

    def _levels(self) -> dict[int, list[int]]:
        """Returns the levels beside the first at which a shard of any rank has entries, by parameter."""
        ranks: list[list[tuple[int, int]]] = self._exchange.of_ranks(list(self._extra))
        levels: dict[int, list[int]] = {}
        for index, level in sorted({each for rank in ranks for each in rank}, reverse=True):
            levels.setdefault(index, []).append(level)
        return levels

    def _total(self, index: int, levels: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Returns the sum, and sets it to 0. levels: where there are further entries, the coarsest first."""
        unit, _ = self._grid(index, 0)
        if not levels:
            return exact.take(self._sums[index], unit, dtype)
        total = exact.take(self._sums[index], unit, torch.float64)
        for level in levels:
            more = self._all_reduced(self._more(index, level, total))
            total += more if level < 0 else exact.take(more, self._grid(index, level)[0], torch.float64)
        # Which of several NaN a sum gives is not defined.
        return torch.where(total.isnan(), math.nan, total).to(dtype)

    def _all_reduced(self, numbers: Tensor) -> Tensor:
        if self._exchange.world_size > 1:
            dist.all_reduce(numbers)
        return numbers

    def state_dict(self) -> dict[str, Any]:
        return {"exponents": dict(self.exponents)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes exponents by name, also of parameters that do not need a gradient yet."""
        self.exponents.update(state["exponents"])


def _refuse(name: str, _: Tensor) -> None:
    raise StepError(
        f"{name} got a gradient outside of its shard's pass, which training.reproducible: bits cannot add "
        "up: from torch.utils.checkpoint with use_reentrant=True, or from a step that keeps the parameter in "
        "a list or a closure; give use_reentrant=False, read parameters from their modules in each step, or "
        "set training.reproducible to curve"
    )
