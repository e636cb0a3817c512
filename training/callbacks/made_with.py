"""With which settings a run has constructed its optimizers and learning rate schedulers.

A checkpoint's whole state has the settings of its own optimizers and schedulers, and they replace those that
a run has just constructed. So a run that goes on with another run's state compares the two first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from lightning.pytorch import Trainer

from training.errors import BuildError

_SHOWN = 3


def made_with(trainer: Trainer) -> dict[str, Any]:
    """Returns the settings by name, such as `Adam.lr`; call it before a state is restored.

    Numbers, texts and None alone: what a scheduler computes with its own functions is not known.
    """
    found: dict[str, Any] = {}
    for optimizer in trainer.optimizers:
        groups = optimizer.param_groups
        for index, group in enumerate(groups):
            name = type(optimizer).__name__ + (f"[{index}]" if len(groups) > 1 else "")
            found.update(_plain(name, {key: value for key, value in group.items() if key != "params"}))
    for config in trainer.lr_scheduler_configs:
        found.update(_plain(type(config.scheduler).__name__, config.scheduler.state_dict()))
    return found


def check_same(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raises BuildError if a run with the settings `now` goes on with the state of one that had `before`.

    before: empty if an earlier version saved the state, which is then not checked.
    """
    if not before or before == now:
        return
    differ = [
        f"{name} was {_shown(before, name)} and is {_shown(now, name)}"
        for name in {**before, **now}
        if before.get(name, _shown) != now.get(name, _shown)
    ]
    more = f" and {len(differ) - _SHOWN} more" if len(differ) > _SHOWN else ""
    raise BuildError(
        "start_from.state",
        "all continues with the checkpoint's optimizers and schedulers, but the model makes others now: "
        f"{', '.join(differ[:_SHOWN])}{more}; leave what they are made from as it was, or start with the "
        "weights alone (state: weights)",
    )


def _shown(settings: Mapping[str, Any], name: str) -> str:
    return repr(settings[name]) if name in settings else "not there"


def _plain(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yields the plain values in nested dicts and lists, each with its path."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _plain(f"{name}.{key}", inner)
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            yield from _plain(f"{name}[{index}]", inner)
    elif isinstance(value, torch.Tensor) and value.numel() == 1:
        yield name, value.item()
    elif value is None or isinstance(value, bool | int | float | str):
        yield name, value
