"""Activations that a network is given by name."""

from __future__ import annotations

from typing import Literal

from torch import nn

Activation = Literal["relu", "sigmoid", "tanh"]

_CLASSES: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "sigmoid": nn.Sigmoid, "tanh": nn.Tanh}


def activation_named(name: str) -> nn.Module:
    """Returns a new module. Raises ValueError, which lists the names, for an unknown one."""
    if name not in _CLASSES:
        raise ValueError(f"activation {name!r} is not one of {', '.join(_CLASSES)}")
    return _CLASSES[name]()
