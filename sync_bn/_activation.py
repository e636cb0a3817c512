"""The activations that a layer can fuse: their values, and their gradients from what went in."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

NAMES = ("relu", "leaky_relu", "silu")


class Activation(NamedTuple):
    """activation(y) = y for y > 0 and slope·y otherwise; with a slope of None, silu(y) = y·sigmoid(y)."""

    slope: float | None

    def __call__(self, y: Tensor) -> Tensor:
        if self.slope is None:
            return F.silu(y)
        return F.relu(y) if self.slope == 0 else F.leaky_relu(y, self.slope)

    def gradient(self, dz: Tensor, y: Tensor) -> Tensor:
        """dz·activation'(y)"""
        if self.slope is None:
            dy: Tensor = torch.ops.aten.silu_backward(dz.to(y.dtype), y)
            return dy
        # A slope of 0 makes 0 of infinite and undefined gradients too, as torch's relu does.
        return dz.masked_fill(y <= 0, 0) if self.slope == 0 else torch.where(y > 0, dz, dz * self.slope)


def activation_named(name: str | None) -> Activation | None:
    """None for None; raises ValueError for any name that is not in NAMES."""
    if name is None:
        return None
    if name not in NAMES:
        raise ValueError(f"activation={name!r} is not known; expected None or one of {', '.join(NAMES)}.")
    return Activation({"relu": 0.0, "leaky_relu": 0.01, "silu": None}[name])
