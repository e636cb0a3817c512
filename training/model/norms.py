"""Applies a spec's `norm` to a model's BatchNorm layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch.distributed as dist
from lightning.pytorch import LightningModule
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from sync_bn import Correction, SyncBatchNorm, process_group_of, revert_sync_batchnorm
from sync_bn.lightning import BatchRenormPlugin, SyncBatchNormPlugin
from training.errors import BuildError
from training.normalisation import replacement
from training.normalisation.affine import ChannelAffine
from training.normalisation.evonorm import EvoNormS0
from training.normalisation.filter_response import FilterResponseNorm
from training.normalisation.ghost import GhostBatchNorm
from training.normalisation.groups import group_count, group_norm
from training.normalisation.replacement import classes_of, listed, where
from training.normalisation.standardised import CLASSES, standardise
from training.spec import Norm

Say = Callable[[str], None]
Layers = Mapping[str, _BatchNorm]


def apply_norm(model: nn.Module, norm: Norm, say: Say = lambda _: None) -> nn.Module:
    """Replaces the BatchNorm layers in place as `norm.kind` says; returns the model.

    keep leaves the model unchanged. So do sync_batch_norm and batch_renorm: a plug-in of the Trainer
    (`layer_sync`) converts the layers when fitting begins, and converts them back when it ends.

    say: called with sentences that name what was replaced. Raises BuildError, naming the layer, for what the
    kind cannot replace, before any change.
    """
    _refuse_fused_activations(model)
    if norm.kind in {"keep", "sync_batch_norm"}:
        return model
    model = revert_sync_batchnorm(model)
    layers = replacement.batch_norms(model)
    if not layers:
        if not _makes_layers_late(model):
            say(f"norm.kind {norm.kind}: the model has no BatchNorm layer to replace")
        return model
    return _APPLIED[norm.kind](model, layers, norm, say)


def apply_norm_when_made(module: LightningModule, norm: Norm, say: Say = lambda _: None) -> None:
    """Applies `norm` to the layers that `module.configure_model` makes, until that attribute is deleted."""
    make, said = module.configure_model, set[str]()

    def say_once(text: str) -> None:
        if text not in said:
            said.add(text)
            say(text)

    def configure_model() -> None:
        make()
        if _makes_layers_late(module):  # Lightning calls it before the training and before the test
            apply_norm(module, norm, say_once)

    module.configure_model = configure_model  # type: ignore[method-assign]


def _makes_layers_late(model: nn.Module) -> bool:
    return (
        isinstance(model, LightningModule)
        and type(model).configure_model is not LightningModule.configure_model
    )


def _refuse_fused_activations(model: nn.Module) -> None:
    """Raises BuildError before training instead of at export, where layers become plain BatchNorm."""
    for name, layer in model.named_modules():
        if isinstance(layer, SyncBatchNorm) and layer.activation is not None:
            raise BuildError(
                "model.class_path",
                f"{where(name)} has activation={layer.activation!r}, which the exported nn.BatchNorm would "
                "not have; construct it without activation, and add a module (nn.ReLU for 'relu') after it",
            )


def _batch_norm(model: nn.Module, layers: Layers, norm: Norm, say: Say) -> nn.Module:
    say(f"norm.kind {norm.kind}: {classes_of(layers.values())} by the statistics of each worker's share")
    return model


def _batch_renorm(model: nn.Module, layers: Layers, norm: Norm, say: Say) -> nn.Module:
    for name, layer in layers.items():
        if layer.running_mean is None:
            raise BuildError(
                "norm.kind",
                f"{where(name)} has track_running_stats=False, and {norm.kind} normalises by running "
                "statistics; construct it with track_running_stats=True, or choose sync_batch_norm",
            )
    _say_replaced(norm, layers, "BatchRenorm while it trains", say)
    return model


def _ghost(model: nn.Module, layers: Layers, norm: Norm, say: Say) -> nn.Module:
    replacement.check_replaceable(layers)
    _say_replaced(norm, layers, f"GhostBatchNorm over {norm.samples} samples", say)
    for layer in layers.values():
        GhostBatchNorm.make(layer, norm.samples)
    return model


def _grouped(model: nn.Module, layers: Layers, norm: Norm, say: Say) -> nn.Module:
    replacement.check_replaceable(layers)
    new: dict[nn.Module, nn.Module] = {}
    for name, layer in layers.items():
        groups = {"layer_norm": 1, "instance_norm": layer.num_features}.get(norm.kind)
        groups = group_count(layer, name, norm.groups) if groups is None else groups
        new[layer] = group_norm(layer, name, groups, norm.kind)
    _say_replaced(norm, layers, _GROUPED[norm.kind], say)
    if norm.weight_standardization:
        _standardise(model, layers, say)
    return _replaced(model, new)


def _standardise(model: nn.Module, layers: Layers, say: Say) -> None:
    """Standardises the convolutions before the layers: a head without normalisation could not scale."""
    modules = dict(model.named_modules())
    chosen: list[str] = []
    left: list[str] = []
    for name, is_before in replacement.convolution_before(model, layers):
        plain = type(modules[name]) in CLASSES and modules[name].weight[0].numel() > 1
        (chosen if is_before and plain else left).append(name)
    for name in chosen:
        standardise(modules[name])
    say(f"norm.weight_standardization: {len(chosen)} convolutions{': ' * bool(chosen)}{listed(chosen)}")
    if left:
        say(
            "norm.weight_standardization: not of these, before which no replaced layer of as many channels "
            f"stands next in the model, or whose channels have one weight: {listed(left)}"
        )


def _with_activation(model: nn.Module, layers: Layers, norm: Norm, say: Say) -> nn.Module:
    """Replaces BatchNorm, and the nn.ReLU where it is known to follow, by layers with an activation."""
    replacement.check_replaceable(layers)
    relus = {layer: replacement.relus_after(model, layer) for layer in layers.values()}
    new: dict[nn.Module, nn.Module] = {}
    for name, layer in layers.items():
        if norm.kind == "evonorm_s0":
            new[layer] = EvoNormS0(layer, name, groups=group_count(layer, name, norm.groups))
        else:
            new[layer] = FilterResponseNorm(layer, name, activation=bool(relus[layer]))
    _say_replaced(norm, layers, _WITH_ACTIVATION[norm.kind].layer, say)
    if alone := [name for name, layer in layers.items() if relus[layer]]:
        say(f"norm.kind {norm.kind}: its activation takes the place of the nn.ReLU after {listed(alone)}")
    if others := [name for name, layer in layers.items() if not relus[layer]]:
        say(
            f"norm.kind {norm.kind}: no nn.ReLU follows directly in an nn.Sequential after {listed(others)}; "
            f"{_WITH_ACTIVATION[norm.kind].otherwise}"
        )
    replacement.remove(place for places in relus.values() for place in places)
    return _replaced(model, new)


def _none(model: nn.Module, layers: Layers, norm: Norm, say: Say) -> nn.Module:
    replacement.check_replaceable(layers)
    _say_replaced(norm, layers, "the scale and shift of each channel", say)
    new: dict[nn.Module, nn.Module] = {
        layer: ChannelAffine(layer, name) if layer.affine else nn.Identity() for name, layer in layers.items()
    }
    return _replaced(model, new)


class _Activating(NamedTuple):
    """A layer's class, and what the log says where no activation gives way to its own."""

    layer: str
    otherwise: str


_WITH_ACTIVATION = {
    "filter_response_norm": _Activating(
        "FilterResponseNorm",
        "there it has no thresholded linear unit, and an activation in the model's own code stays",
    ),
    "evonorm_s0": _Activating(
        "EvoNormS0",
        "an activation in the model's own code stays, and comes after that of EvoNormS0",
    ),
}
_GROUPED = {
    "group_norm": "GroupNorm",
    "layer_norm": "GroupNorm with one group, over all values of a sample",
    "instance_norm": "GroupNorm with a group for each channel",
}
_APPLIED: Mapping[str, Callable[[nn.Module, Layers, Norm, Say], nn.Module]] = {
    "batch_norm": _batch_norm,
    "batch_renorm": _batch_renorm,
    "ghost_batch_norm": _ghost,
    **dict.fromkeys(_GROUPED, _grouped),
    **dict.fromkeys(_WITH_ACTIVATION, _with_activation),
    "none": _none,
}


def _replaced(model: nn.Module, new: Mapping[nn.Module, nn.Module]) -> nn.Module:
    for layer, its_new in new.items():
        replacement.become(layer, its_new)
    return model


def _say_replaced(norm: Norm, layers: Layers, by: str, say: Say) -> None:
    say(f"norm.kind {norm.kind}: {classes_of(layers.values())} replaced by {by}: {listed(layers)}")


def process_group(norm: Norm, node_rank: int) -> dist.ProcessGroup | None:
    """Returns the group of ranks that share statistics with this one; None for all ranks.

    Collective: every rank must call it. node_rank: the same for all ranks of a node. Raises BuildError if
    `norm.group` does not fit the ranks.
    """
    try:
        return process_group_of(norm.group, node=node_rank)
    except ValueError as error:
        raise BuildError("norm.group", str(error)) from None


def layer_sync(norm: Norm, node_rank: int, accumulate: int) -> SyncBatchNormPlugin:
    """Returns the plug-in for a kind that is synchronized. Collective, with the errors of `process_group`.

    accumulate: micro-batches of an optimizer step, each of which a layer counts.
    """
    group = process_group(norm, node_rank)
    if norm.kind == "sync_batch_norm":
        return SyncBatchNormPlugin(group)
    steps = (norm.plain_steps, norm.r_steps, norm.d_steps)
    plain_steps, r_steps, d_steps = (number * accumulate for number in steps)
    return BatchRenormPlugin(
        group,
        Correction(
            r_max=norm.r_max, d_max=norm.d_max, plain_steps=plain_steps, r_steps=r_steps, d_steps=d_steps
        ),
    )
