"""The callback that finds layers that draw random numbers on each worker separately.

Dropout and the like draw by sample (`training.model.sample_noise`). With a layer whose noise that does not
cover, curves on different numbers of workers agree statistically but not to the last digit, which anyone who
compares them must know.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from training.console import say
from training.model.nonfinite import public_name
from training.model.sample_draws import SampleDraws
from training.tracking.tracker import Tracker

NAMES_SHOWN = 20
TAG = "syncbn.noise_per_rank"


class RngWatch(Callback):
    """Reports once, after the first batch of a fit, which modules drew from torch's default generators.

    Only rank 0 reports, in the log and as a tag of the run, and only if a module drew. Uses no collective.
    It does not see the user's own generators, those of NumPy and Python, or layers that start to draw later.
    """

    def __init__(self, tracker: Tracker, draws: SampleDraws) -> None:
        self.tracker, self._draws = tracker, draws
        self._first = False
        self._watch: _DrawRecorder | None = None

    def on_train_start(self, trainer: Trainer, _module: LightningModule) -> None:
        self._first = trainer.is_global_zero

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if self._first:
            self._first = False
            self._watch = _DrawRecorder(pl_module, trainer.strategy.root_device)
            self._draws.unwatched = self._watch.unwatched

    def on_before_backward(self, *_: Any) -> None:
        # Activation checkpointing rewinds the generators and runs layers again: no new draws.
        if self._watch:
            self._watch.pause()

    def on_after_backward(self, *_: Any) -> None:
        if self._watch:
            self._watch.resume()

    def on_train_batch_end(self, *_: Any) -> None:
        if self._watch:
            self._report(self._end(self._watch))

    def on_exception(self, *_: Any) -> None:
        if self._watch:
            self._end(self._watch)

    def _end(self, watch: _DrawRecorder) -> dict[str, str]:
        self._watch, self._draws.unwatched = None, nullcontext
        return watch.end()

    def _report(self, drawn_in: Mapping[str, str]) -> None:
        if not drawn_in:
            return
        layers = _joined([f"{name} ({kind})" for name, kind in drawn_in.items()])
        say(
            f"this model draws random numbers on each worker separately, in {layers}: "
            "curves on different numbers of workers will agree statistically, not exactly"
        )
        self.tracker.tags({TAG: _joined(list(drawn_in))})


class _DrawRecorder:
    """Attributes each draw to the innermost module whose forward is running, from creation until `end`.

    It uses torch's global module hooks instead of hooks on each module: some modules take none
    (ScriptModule), some compute differently with one (TransformerEncoderLayer in evaluation mode), and
    compiled modules would be compiled again when a hook is removed.
    """

    def __init__(self, module: LightningModule, device: torch.device) -> None:
        self._device = device
        # By id, because a torchmetrics metric changes its hash with its state.
        self._labels = {
            id(layer): (public_name(name), type(layer).__name__)
            for name, layer in module.named_modules()
            if name
        }
        self._running = [("training_step", type(module).__name__)]
        self._drawn_in: dict[str, str] = {}
        warnings.filterwarnings("ignore", message="Using `torch.compile.*` when there are global hooks")
        self._hooks = [
            register_module_forward_pre_hook(self._enter),
            register_module_forward_hook(self._leave, always_call=True),  # also after an exception
        ]
        self.resume()

    def resume(self) -> None:
        """Starts recording; draws since `pause` are ignored."""
        self._watching, self._last = True, self._states()

    def pause(self) -> None:
        """Stops recording until `resume`."""
        self._attribute()
        self._watching = False

    @contextmanager
    def unwatched(self) -> Iterator[None]:
        """A context in which changes of the generators are no draws."""
        if not self._watching:
            yield
            return
        self.pause()
        try:
            yield
        finally:
            self.resume()

    def end(self) -> dict[str, str]:
        """Removes the hooks. Returns the class name of each module that drew, by name, in order of draws."""
        self._attribute()
        for hook in self._hooks:
            hook.remove()
        return self._drawn_in

    def _enter(self, layer: nn.Module, _inputs: Any) -> None:
        if torch.compiler.is_compiling():
            return  # otherwise this code would be compiled into the model
        if self._watching and id(layer) in self._labels:
            self._attribute()
            self._running.append(self._labels[id(layer)])

    def _leave(self, layer: nn.Module, _inputs: Any, _output: Any) -> None:
        if torch.compiler.is_compiling():
            return
        if self._watching and id(layer) in self._labels:
            self._attribute()
            self._running.pop()

    def _attribute(self) -> None:
        """Attributes a generator's change since the last call to the innermost running module."""
        if self._watching:
            states = self._states()
            if states != self._last:
                name, kind = self._running[-1]
                self._drawn_in.setdefault(name, kind)
            self._last = states

    def _states(self) -> list[bytes]:
        states = [torch.get_rng_state()]
        if self._device.type == "cuda":
            states.append(torch.cuda.get_rng_state(self._device))
        return [state.numpy().tobytes() for state in states]


def _joined(names: list[str]) -> str:
    more = len(names) - NAMES_SHOWN
    return ", ".join(names[:NAMES_SHOWN] + ([f"and {more} more"] if more > 0 else []))
