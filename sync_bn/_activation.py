"""Activations that a layer can fuse: their values, and their gradients as functions of the input."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

NAMES = ("relu", "leaky_relu", "silu")


class Activation(NamedTuple):
    """activation(y) = y for y > 0 and slope·y otherwise; if slope is None, silu(y) = y·sigmoid(y)."""

    slope: float | None

    def __call__(self, y: Tensor) -> Tensor:
        if self.slope is None:
            return F.silu(y)
        return F.relu(y) if self.slope == 0 else F.leaky_relu(y, self.slope)

    def gradient(self, dz: Tensor, y: Tensor) -> Tensor:
        """Returns dz·activation'(y). dz and y have the same shape, that of the result."""
        if self.slope is None:
            dy: Tensor = torch.ops.aten.silu_backward(dz.to(y.dtype), y)
            return dy
        # With slope 0, infinite and NaN gradients become 0 too, as in torch's relu.
        return dz.masked_fill(y <= 0, 0) if self.slope == 0 else torch.where(y > 0, dz, dz * self.slope)


def activation_named(name: str | None) -> Activation | None:
    """Returns the activation called `name`; None for None. Raises ValueError if it is not in NAMES."""
    if name is None:
        return None
    if name not in NAMES:
        raise ValueError(f"activation={name!r} is not known; expected None or one of {', '.join(NAMES)}.")
    return Activation({"relu": 0.0, "leaky_relu": 0.01, "silu": None}[name])
