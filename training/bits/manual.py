"""Manual optimization: what a training_step does to optimizers and schedulers is done once for all shards.

The threads of the shards meet at each such call, and at each self.manual_backward. There the shards' losses
become that of the global batch, as in automatic optimization, and one backward pass adds up its gradient.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from lightning.pytorch import LightningModule
from torch import Tensor

from training.bits.loss import ShardLoss
from training.bits.shards import RankShards
from training.errors import StepError

Joint = Callable[[list[Any]], Any]


class ManualOptimization:
    """Lets all shards meet at the calls of a module's optimizers, in place of a call for each shard.

    Raises StepError if the shards, on this rank or another one, do not make the same calls in the same order.
    """

    def __init__(self, shards: RankShards, loss: ShardLoss) -> None:
        self._shards, self._loss = shards, loss
        self._calls: list[str] = []
        """Since the ranks have last compared them."""

    @contextmanager
    def in_step(self, module: LightningModule) -> Iterator[None]:
        """A context for a training_step."""
        self._calls.clear()
        self._optimizers = _listed(module.optimizers())
        with ExitStack() as stack:
            for name in ("toggle_optimizer", "untoggle_optimizer", "clip_gradients"):
                stack.enter_context(self._once(module, name, f"self.{name}"))
            for number, optimizer in enumerate(self._optimizers):
                for owner in (optimizer, optimizer.optimizer):
                    words = f"optimizers()[{number}]"
                    stack.enter_context(self._once(owner, "step", f"{words}.step"))
                    stack.enter_context(self._once(owner, "zero_grad", f"{words}.zero_grad"))
            for number, scheduler in enumerate(_listed(module.lr_schedulers())):
                stack.enter_context(self._once(scheduler, "step", f"lr_schedulers()[{number}].step"))
            yield

    def end_step(self) -> None:
        """Must be called by each shard at the end of its training_step."""
        self._meet_all_ranks("the end of training_step", None, lambda _: self._loss.end_manual_step())

    def backward(self, loss: Tensor, call: Callable[..., Any], *args: Any, **options: Any) -> None:
        """Makes one backward pass, call(loss of the global batch), of what each shard gives manual_backward.

        args, options: the other arguments of manual_backward.
        """
        if args or options.keys() - {"retain_graph"}:
            raise StepError(
                f"training_step calls self.manual_backward with {', '.join(options) or 'a gradient'}, which "
                "training.reproducible: bits does not cover; pass the loss and retain_graph alone, or set "
                "training.reproducible to curve"
            )

        def joint(losses: list[Tensor]) -> None:
            total = self._loss.total(losses, self._shards.samples)
            if total is None:
                raise StepError("training_step calls self.manual_backward with a loss that has no gradient")
            call(total, **options)

        self._meet_all_ranks(f"self.manual_backward({self._words((), options)})", loss, joint)

    def _meet_all_ranks(self, place: str, value: Any, joint: Joint) -> None:
        def agreed(values: list[Any]) -> None:
            calls = ", ".join([*self._calls, place])
            self._calls.clear()
            self._loss.agree(calls)
            joint(values)

        self._shards.once_for_all(place, value, agreed)

    @contextmanager
    def _once(self, owner: Any, name: str, words: str) -> Iterator[None]:
        """A context in which a method that all shards call runs once. words: its name."""
        attributes = vars(owner)
        before = attributes.get(name)
        attributes[name] = self._in_place_of(getattr(owner, name), words)
        try:
            yield
        finally:
            if before is None:
                del attributes[name]
            else:
                attributes[name] = before

    def _in_place_of(self, original: Callable[..., Any], words: str) -> Callable[..., Any]:
        @functools.wraps(original)
        def call(*args: Any, **kwargs: Any) -> Any:
            if self._shards.threads.running is None:
                return original(*args, **kwargs)
            if any(callable(value) for value in (*args, *kwargs.values())):
                raise StepError(
                    f"training_step hands a closure to {words}, which training.reproducible: bits does not "
                    "cover; call self.manual_backward before step()"
                )
            place = f"{words}({self._words(args, kwargs)})"

            def joint(_: list[Any]) -> Any:
                self._calls.append(place)
                return original(*args, **kwargs)

            return self._shards.once_for_all(place, None, joint)

        return call

    def _words(self, args: Sequence[Any], kwargs: dict[str, Any]) -> str:
        named = [f"{name}={self._word(value)}" for name, value in kwargs.items()]
        return ", ".join([*map(self._word, args), *named])

    def _word(self, value: Any) -> str:
        """Returns words for an argument that are equal on all shards if the arguments are."""
        for number, optimizer in enumerate(self._optimizers):
            if value is optimizer or value is optimizer.optimizer:
                return f"optimizers()[{number}]"
        return repr(value.tolist() if isinstance(value, Tensor) else value)


class DryOptimization(ManualOptimization):
    """Runs the backward passes of a dry step; calls of optimizers and schedulers do nothing."""

    def end_step(self) -> None: ...

    def backward(self, loss: Tensor, call: Callable[..., Any], *args: Any, **options: Any) -> None:  # noqa: ARG002
        def alone(total: Tensor, **options: Any) -> None:
            with self._shards.in_backward(total):
                total.backward(**options)  # type: ignore[no-untyped-call]

        super().backward(loss, alone, *args, **options)

    def _in_place_of(self, original: Callable[..., Any], words: str) -> Callable[..., Any]:  # noqa: ARG002
        return _nothing


def _nothing(*_: Any, **__: Any) -> None:
    """What a call does in a dry step."""


def _listed(found: Any) -> list[Any]:
    if found is None:
        return []
    return list(found) if isinstance(found, list | tuple) else [found]
