"""The gradients of parameters, summed over the shards of a batch as a tree: see `tree`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from training import internals
from training.bits import tree
from training.bits.exchange import Exchange
from training.errors import StepError

_BUCKET = 2**22
"""Numbers that are sent at once: the memory that this takes is bounded."""
_NARROW = {torch.float16, torch.bfloat16}


class ShardGradients:
    """The sum of the shards' gradients of each parameter.

    For each shard of this rank it makes parameters that share the memory of the model's: `of_shard`. A
    backward pass through them leaves their gradients here, and `finish` adds the sums to the model's own.
    While shards run, between `show` and `hide`, their parameters look like the model's own.

    parameters: those that need a gradient, each once, by name.

    A gradient that arrives at one of the model's own parameters in a backward pass raises StepError: nobody
    would add it up over shards.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], exchange: Exchange) -> None:
        self._names, self._parameters = list(parameters), list(parameters.values())
        self._exchange = exchange
        self._begin()
        self._hooks: list[Any] = []
        self.of_shard = [self._leaves(shard) for shard in exchange.own]
        self._hooks += [_hook(parameter, partial(_refuse, name)) for name, parameter in parameters.items()]
        self._shown: list[tuple[Tensor | None, int]] | None = None
        self._changed = ""

    def _begin(self) -> None:
        self._nodes: list[tree.Nodes] = [{} for _ in self._parameters]
        self._reached: list[set[int]] = [set() for _ in self._parameters]

    def is_of(self, parameters: Mapping[str, nn.Parameter]) -> bool:
        """Returns whether these are the parameters whose gradients are added."""
        pairs = zip(self._parameters, parameters.values(), strict=False)
        return len(parameters) == len(self._parameters) and all(own is other for own, other in pairs)

    def __contains__(self, parameter: nn.Parameter) -> bool:
        return parameter in self.of_shard[0]

    def detach(self) -> None:
        """Lets the model's own parameters have gradients again, and adds those of shards no more."""
        for hook in self._hooks:
            hook.remove()

    def _leaves(self, shard: int) -> dict[nn.Parameter, nn.Parameter]:
        leaves = {}
        for index, parameter in enumerate(self._parameters):
            leaf = nn.Parameter(parameter.detach())
            # Python does not see that a tensor holds its hooks, so they are to be removed: `detach`.
            self._hooks.append(_hook(leaf, partial(self._add, index, shard)))
            leaves[parameter] = leaf
        return leaves

    def show(self) -> None:
        """Gives the parameters of the shards the gradients of the model's, and says whether they need one."""
        self._shown = [(each.grad, _changes(each.grad)) for each in self._parameters]
        for leaves in self.of_shard:
            for parameter, leaf in leaves.items():
                leaf.requires_grad_(parameter.requires_grad)
                leaf.grad = parameter.grad

    def hide(self) -> None:
        """Takes them back. What all shards have done, freeze a parameter or drop its gradient, is done."""
        if self._shown is None:
            return
        shown, self._shown = self._shown, None
        for name, parameter, (gradient, changes) in zip(self._names, self._parameters, shown, strict=True):
            leaves = [of_parameter[parameter] for of_parameter in self.of_shard]
            if all(leaf.grad is None for leaf in leaves):
                parameter.grad = None
            elif any(leaf.grad is not gradient for leaf in leaves) or _changes(gradient) != changes:
                self._changed = self._changed or name
            for leaf in leaves:
                leaf.grad = None
            parameter.requires_grad_(leaves[0].requires_grad)

    def check(self) -> None:
        """Raises StepError if a shard has changed gradients that it was shown."""
        name, self._changed = self._changed, ""
        if name:
            raise StepError(
                f"a step changes the gradient of {name} by itself, but training.reproducible: bits runs it "
                "once for each of several shards; use self.clip_gradients, a hook such as "
                "on_before_optimizer_step, or set training.reproducible to curve"
            )

    def _add(self, index: int, shard: int, leaf: Tensor) -> None:
        if self._shown is not None:
            raise StepError(
                "a step calls loss.backward(), but training.reproducible: bits adds gradients over several "
                "shards; use self.manual_backward(loss) with manual optimization, and return the loss with "
                "the automatic one"
            )
        gradient, leaf.grad = leaf.grad, None
        if gradient is None:  # the pass has reached it, but an operation before had no gradient to give
            return
        if gradient.is_sparse:
            raise StepError(
                "training.reproducible: bits does not add sparse gradients; give the layer sparse=False"
            )
        self._keep(index, shard, gradient.detach())

    def _keep(self, index: int, shard: int, gradient: Tensor) -> None:
        self._reached[index].add(shard)
        wide = _wide(gradient)
        tree.add(self._nodes[index], (shard, 1), gradient if gradient.dtype == wide else gradient.to(wide))

    def finish(self) -> None:
        """Adds the sum of all shards' gradients to that of each parameter. Collective.

        A parameter that no shard has reached keeps the gradient that it has, or None.
        """
        device = self._parameters[0].device if self._parameters else None
        reached = torch.tensor([len(shards) for shards in self._reached], device=device)
        if self._exchange.world_size > 1:
            dist.all_reduce(reached)
        indices = reached.nonzero().flatten().tolist()
        for index in indices:
            parameter = self._parameters[index]
            for shard in set(self._exchange.own) - self._reached[index]:
                tree.add(self._nodes[index], (shard, 1), torch.zeros_like(parameter, dtype=_wide(parameter)))
        for bucket in self._buckets(indices):
            totals = self._totals([self._nodes[index] for index in bucket])
            for index, total in zip(bucket, totals, strict=True):
                self._nodes[index] = {}
                _accumulate(self._parameters[index], total)
        self._begin()

    def _buckets(self, indices: Sequence[int]) -> Iterator[list[int]]:
        """Returns consecutive parameters that are sent at once; all of one dtype."""
        bucket: list[int] = []
        numbers, dtype = 0, None
        for index in indices:
            parameter = self._parameters[index]
            if bucket and (_wide(parameter) != dtype or numbers + parameter.numel() > _BUCKET):
                yield bucket
                bucket, numbers = [], 0
            bucket.append(index)
            numbers, dtype = numbers + parameter.numel(), _wide(parameter)
        if bucket:
            yield bucket

    def _totals(self, parameters: Sequence[tree.Nodes]) -> Iterator[Tensor]:
        """Returns the sum of all shards for each parameter, given the nodes of this rank. Collective."""
        if self._exchange.world_size == 1:
            yield from map(tree.root, parameters)
            return
        own = [[nodes[node] for nodes in parameters] for node in tree.whole_nodes(self._exchange.own)]
        flat = [[values.reshape(-1) for values in of_node] for of_node in own]
        tree.root_of_ranks(flat, self._exchange)
        for values, total in zip(own[0], flat[0], strict=True):
            # In the layout of one worker's gradient: the order in which a norm adds its entries follows it.
            yield values if values.is_contiguous() else values.copy_(total.view_as(values))


def _wide(values: Tensor) -> torch.dtype:
    """Returns the dtype in which gradients of such a dtype are added."""
    return torch.float32 if values.dtype in _NARROW else values.dtype


def _accumulate(parameter: nn.Parameter, total: Tensor) -> None:
    total = total.to(parameter.dtype)
    if parameter.grad is None:
        parameter.grad = total
    else:
        parameter.grad += total


def _changes(gradient: Tensor | None) -> int:
    return -1 if gradient is None else internals.changes_in_place(gradient)


def _hook(parameter: Tensor, call: Callable[[Tensor], None]) -> Any:
    """Calls `call(parameter)` when a gradient arrives; torch refuses that for a frozen parameter."""
    needs_gradient = parameter.requires_grad
    hook = parameter.requires_grad_().register_post_accumulate_grad_hook(call)  # type: ignore[no-untyped-call]
    parameter.requires_grad_(needs_gradient)
    return hook


def _refuse(name: str, _: Tensor) -> None:
    raise StepError(
        f"{name} got a gradient outside of its shard's pass, which training.reproducible: bits cannot add "
        "up: from torch.utils.checkpoint with use_reentrant=True, or from a step that keeps the parameter in "
        "a list or a closure; give use_reentrant=False, read parameters from their modules in each step, or "
        "set training.reproducible to curve"
    )
