"""A user's model with Dropout."""

from __future__ import annotations

from torch import nn


class Dropped(nn.Sequential):
    def __init__(self) -> None:
        layers: list[nn.Module] = [nn.Flatten()]
        for inputs, outputs in ((784, 128), (128, 64)):
            layers += [nn.Linear(inputs, outputs), nn.BatchNorm1d(outputs), nn.ReLU(), nn.Dropout(0.3)]
        super().__init__(*layers, nn.Linear(64, 10))
