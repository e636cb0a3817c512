"""What a spec's `norm` makes of a model's BatchNorm layers."""

from __future__ import annotations

from collections.abc import Callable

import torch.distributed as dist
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.lazy import LazyModuleMixin

from sync_bn import SyncBatchNorm, process_group_of, revert_sync_batchnorm
from training.errors import BuildError
from training.spec import Norm

_PLAIN_FORWARDS = (_BatchNorm.forward, nn.SyncBatchNorm.forward)


def apply_norm(model: nn.Module, norm: Norm) -> nn.Module:
    """Replaces the BatchNorm layers as `norm.kind` says.

    sync_batch_norm and keep leave the model alone: the trainer's plug-in converts for fitting only.
    """
    _refuse_fused_activations(model)
    if norm.kind == "batch_norm":
        return revert_sync_batchnorm(model)
    if norm.kind == "group_norm":
        return _replaced(_only_batch_norm(revert_sync_batchnorm(model)), _group_count)
    if norm.kind == "layer_norm":
        return _replaced(_only_batch_norm(revert_sync_batchnorm(model)), lambda _channels: 1)
    return model


def _refuse_fused_activations(model: nn.Module) -> None:
    """Now, and not after the training: the model that comes out of it has plain BatchNorm."""
    for name, layer in model.named_modules():
        if isinstance(layer, SyncBatchNorm) and layer.activation is not None:
            where = f"layer {name!r}" if name else "the model"
            raise BuildError(
                "model.class_path",
                f"{where} has activation={layer.activation!r}, which the exported nn.BatchNorm would not "
                "have; construct it without, and put a module for it (nn.ReLU for 'relu') after it",
            )


def _only_batch_norm(model: nn.Module) -> nn.Module:
    """The model, if its BatchNorm layers are that alone: what else one does would be gone without a word."""
    for name, layer in model.named_modules():
        if isinstance(layer, _BatchNorm) and (more := _more_than_batch_norm(layer)):
            where = f"layer {name!r}" if name else "the model"
            raise BuildError("norm.kind", f"{where} is a {type(layer).__qualname__}, {more}")
    return model


def _more_than_batch_norm(layer: _BatchNorm) -> str:
    if isinstance(layer, LazyModuleMixin):
        return "which does not know its number of features; construct it with the number"
    if type(layer).forward not in _PLAIN_FORWARDS:
        return (
            "whose forward is its own; put a plain nn.BatchNorm there and a module for the rest beside it, "
            "or use norm.kind: keep"
        )
    return ""


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
    try:
        return process_group_of(norm.group, node=node_rank)
    except ValueError as error:
        raise BuildError("norm.group", str(error)) from None
