"""Filter response normalisation, with its thresholded linear unit (Singh & Krishnan 2020)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from training.normalisation.own_layer import OwnLayer, check_values


class FilterResponseNorm(OwnLayer):
    """For each sample and channel, over its positions::

        ν² = mean(x²)
        y = x / sqrt(ν² + eps) · weight + bias
        z = max(y, tau)

    (Singh & Krishnan, "Filter Response Normalization Layer", 2020, section 3, with eps = 1e-6). tau is
    a parameter for each channel, 0 at first, which is ReLU.

    activation: whether to apply the last line; without it there is no tau. Raises BuildError for
    one position a channel, where y would be the sign of x.
    """

    eps = 1e-6
    tau: nn.Parameter | None

    def __init__(self, layer: _BatchNorm, name: str, *, activation: bool) -> None:
        super().__init__(layer, name)
        like = layer.weight if layer.weight is not None else torch.empty(())
        tau = nn.Parameter(like.new_zeros(self.num_features)) if activation else None
        self.register_parameter("tau", tau)

    def forward(self, x: Tensor) -> Tensor:
        """Returns z, with x's shape and dtype."""
        check_values(x, 1, "filter_response_norm", self.name)
        x_ncl = self.per_position(x)
        y_ncl = self.scaled(x_ncl * (x_ncl.square().mean(2, keepdim=True) + self.eps).rsqrt())
        if self.tau is not None:
            y_ncl = torch.maximum(y_ncl, self.tau.unsqueeze(1))
        return y_ncl.reshape_as(x).to(x.dtype)
