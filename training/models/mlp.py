"""A multi-layer perceptron."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


class MLP(nn.Module):
    """Linear, BatchNorm and ReLU for each hidden width, then a linear head.

    Input (N, ...), flattened to (N, in_features); output (N, num_classes).
    """

    def __init__(
        self, num_classes: int = 10, in_features: int = 64, hidden: Sequence[int] = (128, 128)
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        features = in_features
        for width in hidden:
            layers += [nn.Linear(features, width, bias=False), nn.BatchNorm1d(width), nn.ReLU()]
            features = width
        self.layers = nn.Sequential(nn.Flatten(), *layers)
        self.head = nn.Linear(features, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.head(self.layers(x))
        return output
