"""Changes a model in the last bit of each parameter, to see what rounding alone does to a training."""

from __future__ import annotations

import torch
from torch import nn


def change_last_bits(module: nn.Module) -> None:
    """Changes each real parameter to the next larger number of its dtype."""
    real = [parameter for parameter in module.parameters() if parameter.is_floating_point()]
    with torch.no_grad():
        for parameter in real:
            parameter.copy_(parameter.nextafter(torch.full_like(parameter, torch.inf)))
