"""Noise of a training step that does not depend on how many workers share the batch.

Otherwise each worker would draw by a generator of its own. While a step runs, functions of torch that draw
(`noise_functions`) are called in another way, by a mode of torch, and draw for samples by their positions in
the global batch (`sample_draws`).

The default generators draw for what is not covered: modules that are compiled or scripted, and draws within
torch's own kernels. They are seeded for each step and rank. After the step they go on from where they were
before it. Code that seeds them within a step draws as it would anywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from training import internals, rng_internals
from training.model.noise_functions import FUNCTIONS
from training.model.sample_draws import SampleDraws, Share


class SampleNoise(TorchFunctionMode):
    """Runs training steps in `step`, and backward passes outside of them in `backward`.

    by_sample: False leaves all steps as they are. The mode takes about a microsecond for each call of torch.
    It is left out after the first step with samples, if that has called nothing that may draw, and until a
    step has changed the default generator.
    """

    def __init__(self, *, seed: int, rank: int, by_sample: bool = True) -> None:
        super().__init__()
        self.by_sample = by_sample
        self.draws = SampleDraws(seed=seed, rank=rank)
        self.is_used = True
        """Whether the next step runs in the mode."""
        self._own_seed: int | None = None  # of the default generator, in the last step
        self._was_used = False  # in the last step
        self._is_on = self._may_draw = False

    @contextmanager
    def step(self, module: nn.Module, share: Share | None) -> Iterator[None]:
        """Runs a training step. share: None if positions are unknown; the step then draws as it would."""
        self._was_used = False
        if share is None or not self.by_sample:
            yield
            return
        before = _states()
        with self.draws.unwatched():
            begun = _seed(self.draws.begin(module, share))
        self._own_seed = torch.default_generator.initial_seed()
        self._was_used = self.is_used and not any(map(internals.is_compiled, module.modules()))
        self._may_draw = False
        try:
            with self._in_mode():
                yield
            if not self.is_used:
                self.is_used = not torch.equal(begun, torch.default_generator.get_state())
            elif share.samples:
                self.is_used = self._may_draw
        finally:
            with self.draws.unwatched():
                _restore(before)

    @contextmanager
    def backward(self) -> Iterator[None]:
        """Runs a backward pass, in which activation checkpointing computes layers again."""
        with self._in_mode():
            yield

    @contextmanager
    def _in_mode(self) -> Iterator[None]:
        if self._is_on or not self._was_used:
            yield
            return
        self._is_on = True
        try:
            with self:
                yield
        finally:
            self._is_on = False

    def __torch_function__(
        self, func: Callable[..., Any], _types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if torch.compiler.is_compiling():
            return func(*args, **kwargs)
        if func not in FUNCTIONS:
            if func not in rng_internals.OPENED:
                return func(*args, **kwargs)
            with self, rng_internals.as_tensors() if func in rng_internals.BACKWARD else nullcontext():
                return rng_internals.OPENED[func](*args, **kwargs)
        self._may_draw = True
        if torch.default_generator.initial_seed() != self._own_seed or rng_internals.in_transformation():
            return func(*args, **kwargs)
        return FUNCTIONS[func](self.draws, func, *args, **kwargs)


def _seed(seed: int) -> Tensor:
    """Seeds the default generators. Returns the state of that of the CPU."""
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.manual_seed(seed)
    return torch.default_generator.get_state()


def _states() -> tuple[Tensor, Tensor | None]:
    on_gpu = torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None  # type: ignore[no-untyped-call]
    return torch.default_generator.get_state(), on_gpu


def _restore(states: tuple[Tensor, Tensor | None]) -> None:
    torch.default_generator.set_state(states[0])
    if states[1] is not None:
        torch.cuda.set_rng_state(states[1])
