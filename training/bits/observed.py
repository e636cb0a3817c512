"""What the modules of a model compute in a step, for each shard, as checksums of all bits.

Forward these are the tensors that a module is given and those that it returns, in the order of execution.
Backward they are the gradients of the same tensors, and those of the weights.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, Self

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torchmetrics import Metric

from training.bits.checksums import Checksum, checksum, tensors_in
from training.bits.exchange import Exchange
from training.bits.gradients import ShardGradients
from training.internals import changes_in_place, is_wrapped
from training.model.nonfinite import public_name
from training.model.supervised import Supervised

OF_ALL = -1
"""In place of a shard: what all shards have in common."""

Key = tuple[Any, ...]


class Event(NamedTuple):
    """What was computed, in words, and the checksum of its bits."""

    what: Callable[[], str]
    checksum: Checksum


@dataclass
class _Flow:
    """One tensor, in its last version, and its gradient.

    node: the operation that gives it, kept so that its id is not used again.
    """

    node: Any
    key: Key
    checksum: Checksum
    version: int
    fired: int = 0
    text: str = "the gradient of the batch"
    consumers: list[str] = field(default_factory=list)

    def what(self) -> str:
        """The innermost module that is given the tensor computes its gradient, or what is around it."""
        return f"the gradient that {self.consumers[-1]} passes back" if self.consumers else self.text

    def comes_out(self, name: str, text: str) -> None:
        """A module returns the tensor, which it may have been given itself."""
        self.text = text
        if name in self.consumers:
            self.consumers.remove(name)


class Observed:
    """A context that records what the modules of a model compute for each shard.

    running: returns the number of the shard that runs, None if none does. It uses torch's global hooks of
    modules, because some modules compute differently with hooks of their own, and hooks of tensors, which
    change nothing in the graph.
    """

    def __init__(self, module: LightningModule, running: Callable[[], int | None]) -> None:
        self._module, self._running = module, running
        self._labels = {id(part): label(name, part) for name, part in module.named_modules()}
        self.forward: dict[int, dict[Key, Event]] = defaultdict(dict)
        self.of_step: dict[int, dict[Key, Event]] = defaultdict(dict)
        self.backward: dict[int, dict[Key, Event]] = defaultdict(dict)
        self._stacks: dict[int, list[str]] = defaultdict(list)
        self._counts: Counter[Key] = Counter()
        self._flows: dict[tuple[int, int], _Flow] = {}
        self._hooks = ExitStack()
        self.error = ""
        """What has failed with which error, with its verb; "" if nothing has."""

    @property
    def step(self) -> str:
        name = label("", self._module)
        return name if isinstance(self._module, Supervised) else f"{name}.training_step"

    def __enter__(self) -> Self:
        for hook in (
            register_module_forward_pre_hook(self._enter),
            register_module_forward_hook(self._leave),
        ):
            self._hooks.callback(hook.remove)
        return self

    def __exit__(self, *_: object) -> None:
        self._hooks.close()
        for flow in self._flows.values():
            flow.node = None

    def _enter(self, part: nn.Module, inputs: Any) -> None:
        shard = self._running()
        if shard is None:  # computed again in a backward pass
            return
        name, outer = self._label(part), self._outer(shard)
        what = f"what {outer} passes to {name}"
        for flow in self._tensors(shard, ("input", name), what, inputs):
            flow.consumers.append(name)
        self._stacks[shard].append(name)

    def _leave(self, part: nn.Module, _inputs: Any, output: Any) -> None:
        shard = self._running()
        if shard is None:
            return
        name, stack = self._label(part), self._stacks[shard]
        while stack and stack.pop() != name:
            pass  # those above it have raised an error, which was caught
        text = f"the gradient that {self._outer(shard)} passes back to {name}"
        for flow in self._tensors(shard, ("output", name), f"the output of {name}", output):
            flow.comes_out(name, text)

    def _tensors(self, shard: int, key: Key, what: str, value: Any) -> Iterator[_Flow]:
        """Records the tensors in a value, and yields the flows of their gradients."""
        number = self._number(shard, key)
        for index, tensor in enumerate(tensors_in(value)):
            own = *key, number, index
            if tensor.requires_grad and tensor.grad_fn is not None and not is_wrapped(tensor):
                flow = self._flow(shard, tensor, own)
                self.forward[shard][own] = Event(lambda: what, flow.checksum)
                yield flow
            else:
                self.forward[shard][own] = Event(lambda: what, checksum(tensor))

    def _flow(self, shard: int, tensor: Tensor, key: Key) -> _Flow:
        place, version = (id(tensor.grad_fn), tensor.output_nr), changes_in_place(tensor)
        flow = self._flows.get(place)
        if flow is None:
            self._flows[place] = flow = _Flow(tensor.grad_fn, key, checksum(tensor), version)
            tensor.register_hook(partial(self._gradient, shard, flow))  # type: ignore[no-untyped-call]
        elif flow.version != version:
            flow.checksum, flow.version = checksum(tensor), version
        return flow

    def _gradient(self, shard: int, flow: _Flow, gradient: Tensor) -> None:
        flow.fired += 1
        self.backward[shard][*flow.key, flow.fired] = Event(flow.what, checksum(gradient))

    def weight_gradient(self, shard: int, name: str, gradient: Tensor) -> None:
        """Records the gradient of a weight."""
        key = "weight", name
        self.backward[shard][*key, self._number(shard, key)] = Event(
            lambda: f"the gradient of {public_name(name)}", checksum(gradient)
        )

    def log(self, name: str, value: Any, *_: Any, **options: Any) -> None:
        """Records what a step logs: takes the place of `self.log`."""
        shard = self._running()
        if shard is not None and not isinstance(value, Metric):
            size = options.get("batch_size") or 0
            plain = value.detach() if isinstance(value, Tensor) else value
            number = torch.tensor([float(plain), float(size)], dtype=torch.float64)
            self._of_step(shard, ("logged", name), f"the value {name!r} that {self.step} logs", number)

    def outputs(self, shard: int, output: Any) -> None:
        """Records what a step returns."""
        for index, tensor in enumerate(tensors_in(output)):
            self._of_step(shard, ("loss", index), f"the loss of {self.step}", tensor)

    def rates(self, shard: int, optimizers: Iterable[torch.optim.Optimizer]) -> None:
        """Records the numbers with which optimizers will step, such as the learning rate."""
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                for name in [name for name, value in group.items() if isinstance(value, float)]:
                    what = f"the {name} to which {self.step} sets its optimizer"
                    self._of_step(shard, ("rate", name), what, torch.tensor(group[name]))

    def metric(self, shard: int, name: str, state: Any) -> None:
        """Records the state of a metric after the step."""
        for index, tensor in enumerate(tensors_in(state)):
            self._of_step(
                shard, ("metric", name, index), f"what {self.step} adds to the metric {name}", tensor
            )

    def buffer(self, shard: int, part: nn.Module, name: str, value: Tensor) -> None:
        """Records a buffer after the step."""
        owner = self._label(part)
        self._of_step(shard, ("buffer", owner, name), f"the buffer {name!r} of {owner}", value)

    def _of_step(self, shard: int, key: Key, what: str, value: Tensor) -> None:
        self.of_step[shard][*key, self._number(shard, key)] = Event(lambda: what, checksum(value))

    def failed(self, error: Exception) -> None:
        """Records the error that has ended the step."""
        inner = [stack[-1] for stack in self._stacks.values() if stack]
        self.error = f"{inner[0] if inner else self.step} raises {type(error).__name__} ({error})"

    def _number(self, shard: int, key: Key) -> int:
        self._counts[shard, *key] += 1
        return self._counts[shard, *key]

    def _outer(self, shard: int) -> str:
        return self._stacks[shard][-1] if self._stacks[shard] else self.step

    def _label(self, part: nn.Module) -> str:
        return self._labels.get(id(part)) or f"a {type(part).__name__} that is made in the step"


class HashedGradients(ShardGradients):
    """Records the gradients of each shard, and adds up nothing."""

    def __init__(
        self, observed: Observed, parameters: Mapping[str, nn.Parameter], exchange: Exchange
    ) -> None:
        super().__init__(parameters, exchange)
        self._observed = observed

    def _keep(self, index: int, shard: int, gradient: Tensor) -> None:
        self._observed.weight_gradient(shard, self._names[index], gradient)


def difference(first: Observed, second: Observed) -> str:
    """Says what is computed differently first, with its verb; "" if all is equal."""
    if second.error:
        return second.error
    stages = ("forward", "of_step", "backward")
    for one, other in ((getattr(first, stage), getattr(second, stage)) for stage in stages):
        found = [found for shard in one if (found := _first_of(one[shard], other[shard]))]
        if found:
            return min(found, key=lambda each: each[0])[1]
    return ""


def _first_of(one: Mapping[Key, Event], other: Mapping[Key, Event]) -> tuple[int, str] | None:
    """Returns the position of the first event that differs, and in words how."""
    for position, (key, event) in enumerate(one.items()):
        if key not in other:
            return position, _missing(key, event, "missing")
        if other[key].checksum != event.checksum:
            return position, f"{event.what()} is another one"
    more = [(key, event) for key, event in other.items() if key not in one]
    return (len(one), _missing(*more[0], "new")) if more else None


def _missing(key: Key, event: Event, how: str) -> str:
    if key[0] == "logged":
        return f"only some shards of a batch log {key[1]!r}"
    return f"{event.what()} is {how}"


def label(name: str, part: nn.Module) -> str:
    """Returns how a module is called in messages: its path in the model, and its class."""
    if isinstance(part, Supervised):  # which the user does not know
        return "the training step"
    kind = type(part).__name__
    return f"{public_name(name)} ({kind})" if name else kind
