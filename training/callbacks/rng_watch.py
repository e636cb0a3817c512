"""Which layers draw random numbers, as dropout does.

Each worker draws its own, so with such a layer curves on different numbers of workers agree statistically and
not to the last digits. Who compares them must know.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from training.console import say
from training.model.nonfinite import public_name
from training.tracking.tracker import Tracker

NAMES_SHOWN = 20
TAG = "syncbn.noise_per_rank"


class RngWatch(Callback):
    """Says once, after the first batch of a fit, in which modules one of torch's default generators moved.

    On rank 0, in the log and as a tag of the run; nothing where nothing moved. Communicates with no rank.
    Not seen: generators of the user's own, NumPy's and Python's, and layers that begin to draw later.
    """

    def __init__(self, tracker: Tracker) -> None:
        self.tracker = tracker
        self._first = False
        self._watch: _DrawRecorder | None = None

    def on_train_start(self, trainer: Trainer, _module: LightningModule) -> None:
        self._first = trainer.is_global_zero

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if self._first:
            self._first = False
            self._watch = _DrawRecorder(pl_module, trainer.strategy.root_device)

    def on_before_backward(self, *_: Any) -> None:
        # Activation checkpointing winds the generators back and runs layers again, which draws nothing new.
        if self._watch:
            self._watch.pause()

    def on_after_backward(self, *_: Any) -> None:
        if self._watch:
            self._watch.resume()

    def on_train_batch_end(self, *_: Any) -> None:
        if self._watch:
            self._say(self._watch.end())
            self._watch = None

    def on_exception(self, *_: Any) -> None:
        if self._watch:
            self._watch.end()
            self._watch = None

    def _say(self, found: Mapping[str, str]) -> None:
        if not found:
            return
        layers = _listed([f"{name} ({kind})" for name, kind in found.items()])
        say(
            f"this model draws random numbers on each worker for itself, in {layers}: "
            "curves on different numbers of workers will agree statistically, not exactly"
        )
        self.tracker.tags({TAG: _listed(list(found))})


class _DrawRecorder:
    """Ascribes each movement of a generator to the innermost module whose forward runs at that moment.

    From creation until `end`. It uses torch's hooks for all modules and not those of the modules, because
    some take none (ScriptModule), some compute otherwise with one (TransformerEncoderLayer, in evaluation),
    and what is compiled would be compiled again without it.
    """

    def __init__(self, module: LightningModule, device: torch.device) -> None:
        self._device = device
        # By id: a metric of torchmetrics changes its hash with its state.
        self._labels = {
            id(layer): (public_name(name), type(layer).__name__)
            for name, layer in module.named_modules()
            if name
        }
        self._running = [("training_step", type(module).__name__)]
        self._found: dict[str, str] = {}
        warnings.filterwarnings("ignore", message="Using `torch.compile.*` when there are global hooks")
        self._hooks = [
            register_module_forward_pre_hook(self._enter),
            register_module_forward_hook(self._leave, always_call=True),  # after an exception, too
        ]
        self.resume()

    def resume(self) -> None:
        self._watching, self._last = True, self._states()

    def pause(self) -> None:
        self._ascribe()
        self._watching = False

    def end(self) -> dict[str, str]:
        """The class names of the modules that drew by the modules' names, in the order of their draws."""
        self._ascribe()
        for hook in self._hooks:
            hook.remove()
        return self._found

    def _enter(self, layer: nn.Module, _inputs: Any) -> None:
        if torch.compiler.is_compiling():
            return  # this would become part of what is compiled
        if self._watching and id(layer) in self._labels:
            self._ascribe()
            self._running.append(self._labels[id(layer)])

    def _leave(self, layer: nn.Module, _inputs: Any, _output: Any) -> None:
        if torch.compiler.is_compiling():
            return
        if self._watching and id(layer) in self._labels:
            self._ascribe()
            self._running.pop()

    def _ascribe(self) -> None:
        """What moved since the last time is the innermost module's."""
        if self._watching:
            states = self._states()
            if states != self._last:
                name, kind = self._running[-1]
                self._found.setdefault(name, kind)
            self._last = states

    def _states(self) -> list[bytes]:
        states = [torch.get_rng_state()]
        if self._device.type == "cuda":
            states.append(torch.cuda.get_rng_state(self._device))
        return [state.numpy().tobytes() for state in states]


def _listed(names: list[str]) -> str:
    more = len(names) - NAMES_SHOWN
    return ", ".join(names[:NAMES_SHOWN] + ([f"and {more} more"] if more > 0 else []))
