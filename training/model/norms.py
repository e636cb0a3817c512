"""Applies a spec's `norm` to a model's BatchNorm layers."""

from __future__ import annotations

from collections.abc import Callable

import torch.distributed as dist
from lightning.pytorch import LightningModule
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.lazy import LazyModuleMixin

from sync_bn import SyncBatchNorm, process_group_of, revert_sync_batchnorm
from training.errors import BuildError
from training.spec import Norm

_PLAIN_FORWARDS = (_BatchNorm.forward, nn.SyncBatchNorm.forward)


def apply_norm(model: nn.Module, norm: Norm) -> nn.Module:
    """Replaces the BatchNorm layers in place as `norm.kind` says; returns the model, or the new top layer.

    keep leaves the model unchanged. So does sync_batch_norm: a plug-in of the Trainer converts the layers
    when fitting begins, and converts them back when it ends (`training.rank.trainer`).
    """
    _refuse_fused_activations(model)
    if norm.kind == "batch_norm":
        return revert_sync_batchnorm(model)
    if norm.kind == "group_norm":
        return _replace(_only_batch_norm(revert_sync_batchnorm(model)), _group_count)
    if norm.kind == "layer_norm":
        return _replace(_only_batch_norm(revert_sync_batchnorm(model)), lambda _channels: 1)
    assert norm.kind in {"keep", "sync_batch_norm"}, norm.kind
    return model


def apply_norm_when_made(module: LightningModule, norm: Norm) -> None:
    """Applies `norm` to the layers that `module.configure_model` makes, until that attribute is deleted."""
    make = module.configure_model

    def configure_model() -> None:
        make()
        apply_norm(module, norm)

    module.configure_model = configure_model  # type: ignore[method-assign]


def _refuse_fused_activations(model: nn.Module) -> None:
    """Raises BuildError before training instead of at export, where layers become plain BatchNorm."""
    for name, layer in model.named_modules():
        if isinstance(layer, SyncBatchNorm) and layer.activation is not None:
            where = f"layer {name!r}" if name else "the model"
            raise BuildError(
                "model.class_path",
                f"{where} has activation={layer.activation!r}, which the exported nn.BatchNorm would not "
                "have; construct it without activation, and add a module (nn.ReLU for 'relu') after it",
            )


def _only_batch_norm(model: nn.Module) -> nn.Module:
    """Returns the model. Raises BuildError for a BatchNorm layer with behaviour that replacing would lose."""
    for name, layer in model.named_modules():
        if isinstance(layer, _BatchNorm) and (more := _more_than_batch_norm(layer)):
            where = f"layer {name!r}" if name else "the model"
            raise BuildError("norm.kind", f"{where} is a {type(layer).__qualname__}, {more}")
    return model


def _more_than_batch_norm(layer: _BatchNorm) -> str:
    if isinstance(layer, LazyModuleMixin):
        return "which does not know its number of features yet; construct it with that number"
    if type(layer).forward not in _PLAIN_FORWARDS:
        return (
            "which has its own forward; use a plain nn.BatchNorm and a separate module for the rest, "
            "or norm.kind: keep"
        )
    return ""


def _group_count(channels: int) -> int:
    """Returns 32 (Wu & He 2018), or the next power of 2 that leaves an even number of channels per group.

    Not one channel per group: after a linear layer it has a single value per sample, and so no variance.
    """
    return next((groups for groups in (32, 16, 8, 4, 2) if channels % (2 * groups) == 0), 1)


def _replace(model: nn.Module, groups: Callable[[int], int]) -> nn.Module:
    """Replaces each BatchNorm by a GroupNorm. A layer used in several places stays a single layer."""
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
    """Returns the group of ranks that share statistics with this one; None for all ranks.

    Collective: every rank must call it. node_rank: the same for all ranks of a node. Raises BuildError if
    `norm.group` does not fit the ranks.
    """
    try:
        return process_group_of(norm.group, node=node_rank)
    except ValueError as error:
        raise BuildError("norm.group", str(error)) from None
