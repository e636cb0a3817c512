"""A user's model with Dropout, also one that records when its steps begin."""

from __future__ import annotations

from torch import nn

from benchmarks.uploaded.stamped import Stamped


class Dropped(nn.Sequential):
    def __init__(self) -> None:
        layers: list[nn.Module] = [nn.Flatten()]
        for inputs, outputs in ((784, 128), (128, 64)):
            layers += [nn.Linear(inputs, outputs), nn.BatchNorm1d(outputs), nn.ReLU(), nn.Dropout(0.3)]
        super().__init__(*layers, nn.Linear(64, 10))


class StampedDropped(Stamped):
    """Has the network of `Dropped`."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.net = Dropped()
