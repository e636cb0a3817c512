"""A small Inception network for images of 28×28."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

from training.models.activations import Activation, activation_named


class Block(nn.Module):
    """Four branches, concatenated: 1×1; 3×3; two 3×3; average pooling and 1×1. Each has `width` channels.

    1×1 convolutions come before the larger ones. Input (N, in_channels, H, W), output (N, 4·width, H, W).
    """

    def __init__(self, in_channels: int, width: int, activation: Activation, *, norm: bool) -> None:
        super().__init__()

        def unit(channels: int, size: int) -> nn.Sequential:
            return convolution(channels, width, size, activation, norm=norm)

        self.branches = nn.ModuleList(
            [
                unit(in_channels, 1),
                nn.Sequential(unit(in_channels, 1), unit(width, 3)),
                nn.Sequential(unit(in_channels, 1), unit(width, 3), unit(width, 3)),
                nn.Sequential(nn.AvgPool2d(3, stride=1, padding=1), unit(in_channels, 1)),
            ]
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], dim=1)


class SmallInception(nn.Module):
    """A stem and two blocks of an Inception network, which is normalised before each activation.

    After Ioffe & Szegedy 2015, section 4.2 and appendix: two 3×3 convolutions in place of a 5×5 one, and
    normalised convolutions without bias. Input (N, in_channels, 28, 28), output (N, num_classes).

    width: channels of the stem and of each branch of the first block; the second block has twice as many.
    norm: whether there is BatchNorm. Raises ValueError for an unknown activation.
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 1,
        width: int = 8,
        activation: Activation = "relu",
        *,
        norm: bool = True,
    ) -> None:
        super().__init__()
        self.stem = convolution(in_channels, width, 3, activation, stride=2, norm=norm)
        self.blocks = nn.Sequential(
            Block(width, width, activation, norm=norm),
            nn.MaxPool2d(3, stride=2, padding=1),
            Block(4 * width, 2 * width, activation, norm=norm),
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(8 * width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.head(self.pool(self.blocks(self.stem(x))).flatten(1))
        return output


def convolution(
    in_channels: int, channels: int, size: int, activation: Activation, *, stride: int = 1, norm: bool
) -> nn.Sequential:
    """Returns a convolution that keeps the image's size divided by `stride`, BatchNorm and the activation."""
    parts: OrderedDict[str, nn.Module] = OrderedDict(
        conv=nn.Conv2d(in_channels, channels, size, stride=stride, padding=size // 2, bias=not norm)
    )
    if norm:
        parts["norm"] = nn.BatchNorm2d(channels)
    parts["activation"] = activation_named(activation)
    return nn.Sequential(parts)
