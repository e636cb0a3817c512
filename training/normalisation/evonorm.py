"""EvoNorm-S0: normalisation and activation in one formula, found by search (Liu et al. 2020)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from training.normalisation.own_layer import OwnLayer, check_values


class EvoNormS0(OwnLayer):
    """For each sample, with the biased variance of each group of channels over their positions::

        y = x · sigmoid(v · x) / sqrt(var + eps) · weight + bias

    (Liu et al., "Evolving Normalization-Activation Layers", 2020). v is a parameter for each channel, 1 at
    first. eps is BatchNorm's.

    groups: a divisor of the number of channels. Raises BuildError for one value a group.
    """

    def __init__(self, layer: _BatchNorm, name: str, *, groups: int) -> None:
        super().__init__(layer, name)
        self.groups, self.eps = groups, layer.eps
        like = layer.weight if layer.weight is not None else torch.empty(())
        self.v = nn.Parameter(like.new_ones(self.num_features))

    def forward(self, x: Tensor) -> Tensor:
        """Returns y, with x's shape and dtype."""
        channels = self.num_features // self.groups
        check_values(x, channels, "evonorm_s0", self.name)
        x_ncl = self.per_position(x)
        grouped = torch.unflatten(x_ncl, 1, (self.groups, channels)).flatten(2)
        centred = grouped - grouped.mean(2, keepdim=True)
        invstd_ng1 = (centred.square().mean(2, keepdim=True) + self.eps).rsqrt()
        gated = x_ncl * torch.sigmoid(self.v.unsqueeze(1) * x_ncl)
        return self.scaled(gated * invstd_ng1.repeat_interleave(channels, 1)).reshape_as(x).to(x.dtype)

    def extra_repr(self) -> str:
        """Returns the numbers of channels and groups."""
        return f"{self.num_features}, groups={self.groups}"
