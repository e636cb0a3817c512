"""Weight standardisation of convolutions (Qiao et al. 2019)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

EPS = 1e-5
CLASSES = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d


class _Standardised:
    """Mixin: convolves with ŵ = (w - mean) / sqrt(var + eps), for each output channel over its weights.

    (Qiao et al., "Weight Standardization", 2019; the variance is the biased one.) `weight`
    stays w, under its name, and that is what an optimizer changes.
    """

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        convolve: Any = super()
        y: Tensor = convolve._conv_forward(input, standardised(weight), bias)
        return y


class StandardisedConv1d(_Standardised, nn.Conv1d):
    """nn.Conv1d with standardised weights."""


class StandardisedConv2d(_Standardised, nn.Conv2d):
    """nn.Conv2d with standardised weights."""


class StandardisedConv3d(_Standardised, nn.Conv3d):
    """nn.Conv3d with standardised weights."""


_OF = dict(zip(CLASSES, (StandardisedConv1d, StandardisedConv2d, StandardisedConv3d), strict=True))


def standardised(weight: Tensor) -> Tensor:
    """Returns ŵ, with the shape of w, (out channels, ...)."""
    return F.layer_norm(weight.flatten(1), (weight[0].numel(),), eps=EPS).view_as(weight)


def standardise(convolution: Convolution) -> None:
    """Makes one of CLASSES convolve with standardised weights, in place."""
    kind: Any = _OF[type(convolution)]
    convolution.__class__ = kind


@torch.no_grad()
def fold(convolution: nn.Module) -> None:
    """Makes a convolution that was standardised torch's own, with the weights that it convolves with."""
    assert isinstance(convolution, Convolution)
    convolution.weight.copy_(standardised(convolution.weight))
    kind: Any = next(plain for plain, own in _OF.items() if own is type(convolution))
    convolution.__class__ = kind


def is_standardised(module: nn.Module) -> bool:
    """Whether it convolves with standardised weights."""
    return isinstance(module, _Standardised)
