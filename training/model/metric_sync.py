"""A faster sync of torchmetrics metrics over the ranks: one all-gather per state.

torchmetrics adds a barrier and, unless the state is a scalar, an all-gather of its shape. Even for a small
metric these take as long as several training steps.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_max, dim_zero_mean, dim_zero_min, dim_zero_sum

from training.metric_internals import reductions

_SHAPE_PRESERVING = {dim_zero_sum, dim_zero_mean, dim_zero_max, dim_zero_min}


def sync_directly(module: nn.Module) -> None:
    """Makes the metrics in `module` sync with one all-gather per state.

    Leaves out metrics with a state whose shape may differ between ranks: a state that is concatenated, or
    reduced by a custom function.
    """
    for submodule in module.modules():
        if isinstance(submodule, Metric) and set(reductions(submodule).values()) <= _SHAPE_PRESERVING:
            submodule.dist_sync_fn = _all_gather


def _all_gather(state: Tensor, group: Any = None) -> list[Tensor]:
    """Returns the states of all ranks. Collective, reached by empty ranks too: Lightning computes on all."""
    states = [torch.empty_like(state) for _ in range(dist.get_world_size(group))]
    dist.all_gather(states, state.contiguous(), group=group)
    return states
