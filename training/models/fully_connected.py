"""A plain fully connected network with or without BatchNorm, whose initial weights can be chosen."""

from __future__ import annotations

import math
from collections import OrderedDict

from torch import Tensor, nn

from training.models.activations import Activation, activation_named


class FullyConnected(nn.Module):
    """`depth` hidden layers of `width` units and a linear head (Ioffe & Szegedy 2015, section 4.1).

    A hidden layer is activation(BN(Wu)), or activation(Wu + b) if not `norm`: BN cancels a bias before it
    (section 3.2). Input (N, ...), flattened to (N, in_features); output (N, num_classes).

    weight_std: weights are drawn from a normal distribution with mean 0 and this standard deviation; None:
    √(2 / inputs of the layer) (He et al. 2015). weight_scale: a factor for the initial weights of the hidden
    layers. Biases are 0. Raises ValueError for an unknown activation.
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_features: int = 784,
        width: int = 100,
        depth: int = 3,
        activation: Activation = "sigmoid",
        *,
        norm: bool = True,
        weight_std: float | None = None,
        weight_scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.flatten = nn.Flatten()
        self.hidden = nn.Sequential()
        features = in_features
        for _ in range(depth):
            parts: OrderedDict[str, nn.Module] = OrderedDict(linear=nn.Linear(features, width, bias=not norm))
            if norm:
                parts["norm"] = nn.BatchNorm1d(width)
            parts["activation"] = activation_named(activation)
            self.hidden.append(nn.Sequential(parts))
            features = width
        self.head = nn.Linear(features, num_classes)
        for name, layer in self.named_modules():
            if isinstance(layer, nn.Linear):
                std = math.sqrt(2 / layer.in_features) if weight_std is None else weight_std
                nn.init.normal_(layer.weight, std=std * (1.0 if name == "head" else weight_scale))
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.head(self.hidden(self.flatten(x)))
        return output
