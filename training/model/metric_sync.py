"""How metrics of torchmetrics meet over the ranks: one all-gather a state.

torchmetrics puts a barrier before it and, unless the state is a scalar, an all-gather of its shape. For the
few states of a small metric that takes as long as several training steps.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_max, dim_zero_mean, dim_zero_min, dim_zero_sum

_OF_ONE_SHAPE = {dim_zero_sum, dim_zero_mean, dim_zero_max, dim_zero_min}


def sync_directly(module: nn.Module) -> None:
    """Makes the metrics of `module` meet so, except those with a state whose shape may differ from rank to
    rank: one that is concatenated, or reduced by a function of their own.
    """
    for each in module.modules():
        if isinstance(each, Metric) and set(each._reductions.values()) <= _OF_ONE_SHAPE:
            each.dist_sync_fn = _gathered


def _gathered(state: Tensor, group: Any = None) -> list[Tensor]:
    """Every rank's. Every rank gets here, an empty one too: Lightning computes a metric on all of them."""
    states = [torch.empty_like(state) for _ in range(dist.get_world_size(group))]
    dist.all_gather(states, state.contiguous(), group=group)
    return states
