"""Changing the class of a batch normalisation in place, and changing it back.

The module object stays: parameters, buffers, hooks, flags, the places where it is shared and everything that
anyone stored on it survive, because nothing touches them. What the way back needs is kept on the module.
"""

import inspect
from collections.abc import Iterator
from typing import Any

import torch.distributed as dist
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils import parametrize

from sync_bn._lazy import known_features, lazy_class

_CLASS_BY_INPUT_DIM = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
_KEPT_ON_THE_MODULE = {"process_group", "_original_class", "_original_process_group", "_layer_name"}
# What a subclass may override: the check is the target's own, how a layer prints itself is not its result,
# and what a lazy class becomes is kept.
_REPLACEABLE = {"_check_input_dim", "extra_repr", "cls_to_become"}


def convert(
    module: nn.Module, target: type[_BatchNorm], process_group: dist.ProcessGroup | None
) -> nn.Module:
    """Make every batch normalisation in `module` a `target`; all of them or, with an error, none."""
    found = list(_layers(module, _BatchNorm))
    for name, layer in found:
        if not isinstance(layer, target):
            _refuse_what_would_be_lost(layer, name, target)
    for name, layer in found:
        _convert_one(layer, target, process_group)
        # The layer's place says more in a message than the name of its class.
        if name or "_layer_name" not in layer.__dict__:
            layer.__dict__["_layer_name"] = name or target.__name__
    return module


def revert(module: nn.Module, target: type[_BatchNorm]) -> nn.Module:
    """Give every `target` in `module` the class it had before; all of them or, with an error, none."""
    found = list(_layers(module, target))
    for name, layer in found:
        _refuse_what_no_class_has(layer, name)
    for _, layer in found:
        _revert_one(layer)
    return module


def _layers(module: nn.Module, kind: type[_BatchNorm]) -> Iterator[tuple[str, _BatchNorm]]:
    """Each layer once, with the first of its names."""
    return ((name, layer) for name, layer in module.named_modules() if isinstance(layer, kind))


def _convert_one(
    module: _BatchNorm, target: type[_BatchNorm], process_group: dist.ProcessGroup | None
) -> None:
    state = module.__dict__
    if not isinstance(module, target):
        state["_original_class"] = _class_without_parametrizations(module)
        if "process_group" in state:
            state["_original_process_group"] = state["process_group"]
        state.setdefault("process_group", None)
        kind: Any = target
        _set_class(module, lazy_class(kind) if isinstance(module, LazyModuleMixin) else kind)
        # torch leaves a 0 on a lazy layer that got its tensors from a state_dict.
        module.num_features = module.num_features or known_features(module) or 0
    if process_group is not None:
        state["process_group"] = process_group


def _revert_one(module: _BatchNorm) -> None:
    state = module.__dict__
    seen_dim = state.get("_last_input_dim", 4)
    original_class: Any = state.get("_original_class") or _CLASS_BY_INPUT_DIM.get(seen_dim, nn.BatchNorm2d)
    had_group, group = "_original_process_group" in state, state.get("_original_process_group")
    for name in _own_attributes(type(module)):
        state.pop(name, None)
    if had_group:
        state["process_group"] = group
    if issubclass(original_class, LazyModuleMixin) and not isinstance(module, LazyModuleMixin):
        # It has seen its first batch since, and torch would have changed its class then.
        original_class = original_class.cls_to_become or original_class
    _set_class(module, original_class)


def _class_without_parametrizations(module: nn.Module) -> type[nn.Module]:
    return type(module).__bases__[0] if parametrize.is_parametrized(module) else type(module)


def _set_class(module: nn.Module, new_class: type[nn.Module]) -> None:
    module.__class__ = new_class
    # A parametrized module has a class made for it alone, a subclass with a property for each parametrized
    # tensor. The new class needs the same, and torch has no public call for a module parametrized before.
    if parametrize.is_parametrized(module):
        parametrize._inject_new_class(module)
        assert isinstance(module.parametrizations, nn.ModuleDict)
        for name in module.parametrizations:
            parametrize._inject_property(module, name)


def _refuse_what_would_be_lost(module: _BatchNorm, name: str, target: type[_BatchNorm]) -> None:
    kind = _class_without_parametrizations(module)
    who = f"{_quoted(name)} ({kind.__module__}.{kind.__qualname__})"
    overridden = _overridden(kind) | ({"forward"} & module.__dict__.keys())
    if overridden:
        raise TypeError(
            f"{who} has its own {' and '.join(sorted(overridden))}, which {target.__name__} would "
            "silently replace. Put a plain nn.BatchNorm there and a module for the rest beside it, or "
            "convert the parts of the model around it."
        )
    if taken := _own_attributes(target) & module.__dict__.keys() - {"process_group"}:
        raise TypeError(
            f"{who} has an attribute {' and '.join(sorted(taken))}, which {target.__name__} would take for "
            "its own. Rename it, or convert the parts of the model around the layer."
        )
    unknown = module.num_features == 0 and known_features(module) is None
    if unknown and not isinstance(module, LazyModuleMixin):
        raise ValueError(
            f"{who} has num_features=0 and no parameter or buffer that tells their number. "
            "Set its num_features, then convert it."
        )


def _refuse_what_no_class_has(module: _BatchNorm, name: str) -> None:
    activation = getattr(module, "activation", None)
    if activation is not None:
        raise TypeError(
            f"{_quoted(name)} has activation={activation!r}, which no torch class has: reverted, the layer "
            "would silently lose it. Construct it without activation, and put a module for it "
            "(nn.ReLU for 'relu') after it."
        )
    if any(kind.__module__.startswith("torch.distributed.") for kind in type(module).__mro__):
        raise TypeError(
            f"{_quoted(name)} ({type(module).__name__}) is sharded by itself, and reverted it would silently "
            "be so no more. Revert a model of its own, and load the full state_dict into it."
        )


def _quoted(name: str) -> str:
    return repr(name) if name else "the module itself"


def _overridden(kind: type[nn.Module]) -> set[str]:
    """What the subclasses of torch's layers in `kind` do in their own way, constructors aside."""
    own = {name for c in kind.__mro__ if not c.__module__.startswith("torch.nn.modules.") for name in vars(c)}
    special = {name for name in own if name.startswith("__")} - {"__call__"}
    return own & set(dir(nn.LazyBatchNorm2d)) - special - _REPLACEABLE


def _own_attributes(kind: type[nn.Module]) -> set[str]:
    """What conversion and the classes of this package in `kind` keep on a module: theirs, not the user's."""

    def annotated(torchs: bool) -> set[str]:
        classes = (c for c in kind.__mro__ if c.__module__.startswith("torch.") == torchs)
        return {name for c in classes for name in inspect.get_annotations(c)}

    return _KEPT_ON_THE_MODULE | annotated(torchs=False) - annotated(torchs=True)
