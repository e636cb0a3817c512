"""The base of the layers that torch has not: BatchNorm's parameters under their names, and the way out."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from training.errors import BuildError


class OwnLayer(nn.Module):
    """A layer with the `weight` and `bias` of the BatchNorm layer that it replaces; either may be None.

    name: of that layer in the model, for messages. Input and output are (N, C, ...); N may be 0.
    """

    weight: nn.Parameter | None
    bias: nn.Parameter | None

    def __init__(self, layer: _BatchNorm, name: str) -> None:
        super().__init__()
        self.num_features, self.name = layer.num_features, name
        self.register_parameter("weight", layer.weight)
        self.register_parameter("bias", layer.bias)

    def exported(self) -> nn.Module:
        """Returns the layer in evaluation as a GraphModule: torch's operations with the same state."""
        tracer = fx.Tracer()
        layer: Any = copy.copy(self)
        layer.training = False
        return fx.GraphModule(layer, tracer.trace(layer), type(self).__name__).eval()

    def extra_repr(self) -> str:
        """Returns the number of channels."""
        return str(self.num_features)

    def per_position(self, x: Tensor) -> Tensor:
        """Returns (N, C, ...) as (N, C, positions), in the dtype of the parameters, which may be wider."""
        flat = x.unsqueeze(-1).flatten(2)
        return flat if self.weight is None else flat.to(self.weight.dtype)

    def scaled(self, x_ncl: Tensor) -> Tensor:
        """Returns x·weight + bias for (N, C, positions)."""
        x_ncl = x_ncl if self.weight is None else x_ncl * self.weight.unsqueeze(1)
        return x_ncl if self.bias is None else x_ncl + self.bias.unsqueeze(1)


def check_values(x: object, per_group: int, kind: str, name: str) -> None:
    """Raises BuildError if each group of a sample has one value, which is no statistics.

    per_group: channels of a group.
    """
    if not isinstance(x, Tensor):  # torch.fx traces it with a proxy, which has no shape
        return
    if x.numel() and per_group * x[0, 0].numel() == 1:
        raise BuildError(
            "norm.kind",
            f"layer {name!r} got an input of shape {tuple(x.shape)}, of which {kind} would normalise single "
            "values: one for each sample and group of channels; choose layer_norm, group_norm with fewer "
            "groups, or sync_batch_norm",
        )
