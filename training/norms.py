"""What a spec's `norm` makes of a model's BatchNorm layers."""

from __future__ import annotations

from collections.abc import Callable

import torch.distributed as dist
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from sync_bn import revert_sync_batchnorm
from training.failures import BuildError
from training.spec import Norm


def apply_norm(model: nn.Module, norm: Norm) -> nn.Module:
    """Replaces the BatchNorm layers as `norm.kind` says.

    sync_batch_norm and keep leave the model alone: the trainer's plug-in converts for fitting only.
    """
    if norm.kind == "batch_norm":
        return revert_sync_batchnorm(model)
    if norm.kind == "group_norm":
        return _replaced(model, _group_count)
    if norm.kind == "layer_norm":
        return _replaced(model, lambda _channels: 1)
    return model


def _group_count(channels: int) -> int:
    """32 groups (Wu & He 2018), or the next power of 2 that leaves two channels or more in each.

    One channel alone has no variance where it has one value, as behind a linear layer.
    """
    return next((groups for groups in (32, 16, 8, 4, 2) if channels % (2 * groups) == 0), 1)


def _replaced(model: nn.Module, groups: Callable[[int], int]) -> nn.Module:
    """A layer that stands in several places stays one layer."""
    new = {m: _group_norm(m, groups(m.num_features)) for m in model.modules() if isinstance(m, _BatchNorm)}
    if isinstance(model, _BatchNorm):
        return new[model]
    for module in list(model.modules()):
        for name, child in module._modules.items():
            if isinstance(child, _BatchNorm):
                module._modules[name] = new[child]
    return model


def _group_norm(layer: _BatchNorm, groups: int) -> nn.GroupNorm:
    new = nn.GroupNorm(groups, layer.num_features, eps=layer.eps, affine=layer.affine)
    if layer.affine:
        new.weight, new.bias = layer.weight, layer.bias
    return new.train(layer.training)


def process_group(norm: Norm, node_rank: int) -> dist.ProcessGroup | None:
    """The ranks that share statistics with this one; None for all of them.

    Collective: every rank calls it. `node_rank` tells the ranks of one node from those of another.
    """
    world_size = dist.get_world_size()
    if norm.group == "world":
        return None
    if norm.group == "node":
        nodes: list[int] = [0] * world_size
        dist.all_gather_object(nodes, node_rank)
        members = [[rank for rank in range(world_size) if nodes[rank] == node] for node in sorted(set(nodes))]
    else:
        if world_size % norm.group:
            raise BuildError("norm.group", f"{world_size} workers cannot be cut into groups of {norm.group}")
        members = [list(range(at, at + norm.group)) for at in range(0, world_size, norm.group)]
    group: dist.ProcessGroup
    group, _ = dist.new_subgroups_by_enumeration(members)  # type: ignore[no-untyped-call]
    return group
