"""Changes the class of batch normalisation modules in place, and back.

The module object stays the same, so parameters, buffers, hooks, flags, sharing and user attributes survive.
What is needed to revert is stored on the module.
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
_STORED_ON_MODULE = {"process_group", "_original_class", "_original_process_group", "_layer_name"}
# Members that a subclass may override without loss: the target has its own input check, `extra_repr` does not
# change results, and `cls_to_become` is kept.
_REPLACEABLE = {"_check_input_dim", "extra_repr", "cls_to_become"}


def convert(
    module: nn.Module, target: type[_BatchNorm], process_group: dist.ProcessGroup | None
) -> nn.Module:
    """Makes every batch normalisation in `module` a `target`. If it raises, it has changed none."""
    layers = list(_layers(module, _BatchNorm))
    for name, layer in layers:
        if not isinstance(layer, target):
            _check_convertible(layer, name, target)
    for name, layer in layers:
        _convert_one(layer, target, process_group)
        # In messages, the layer's name in the model says more than the name of its class.
        if name or "_layer_name" not in layer.__dict__:
            layer.__dict__["_layer_name"] = name or target.__name__
    return module


def revert(module: nn.Module, target: type[_BatchNorm]) -> nn.Module:
    """Gives every `target` in `module` its original class. If it raises, it has changed none."""
    layers = list(_layers(module, target))
    for name, layer in layers:
        _check_revertible(layer, name)
    for _, layer in layers:
        _revert_one(layer)
    return module


def _layers(module: nn.Module, kind: type[_BatchNorm]) -> Iterator[tuple[str, _BatchNorm]]:
    """Yields each layer once, with its first name."""
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
        # torch leaves num_features 0 on a lazy layer whose tensors came from a state_dict.
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
        # It has had its first batch since; torch would have changed its class then.
        original_class = original_class.cls_to_become or original_class
    _set_class(module, original_class)


def _class_without_parametrizations(module: nn.Module) -> type[nn.Module]:
    return type(module).__bases__[0] if parametrize.is_parametrized(module) else type(module)


def _set_class(module: nn.Module, new_class: type[nn.Module]) -> None:
    module.__class__ = new_class
    # A parametrized module has a class of its own, a subclass with a property for each parametrized tensor.
    # The new class needs the same; torch has no public function for a module that is parametrized already.
    if parametrize.is_parametrized(module):
        parametrize._inject_new_class(module)
        assert isinstance(module.parametrizations, nn.ModuleDict)
        for name in module.parametrizations:
            parametrize._inject_property(module, name)


def _check_convertible(module: _BatchNorm, name: str, target: type[_BatchNorm]) -> None:
    kind = _class_without_parametrizations(module)
    label = f"{_quoted(name)} ({kind.__module__}.{kind.__qualname__})"
    overridden = _overridden(kind) | ({"forward"} & module.__dict__.keys())
    if overridden:
        raise TypeError(
            f"{label} has its own {' and '.join(sorted(overridden))}, which {target.__name__} would "
            "silently replace. Use a plain nn.BatchNorm and a separate module for the rest, or convert "
            "only the other parts of the model."
        )
    if conflicting := _own_attributes(target) & module.__dict__.keys() - {"process_group"}:
        raise TypeError(
            f"{label} has an attribute {' and '.join(sorted(conflicting))}, which {target.__name__} uses "
            "itself. Rename it, or convert only the other parts of the model."
        )
    unknown = module.num_features == 0 and known_features(module) is None
    if unknown and not isinstance(module, LazyModuleMixin):
        raise ValueError(
            f"{label} has num_features=0 and no parameter or buffer from which to infer it. "
            "Set num_features, then convert."
        )


def _check_revertible(module: _BatchNorm, name: str) -> None:
    activation = getattr(module, "activation", None)
    if activation is not None:
        raise TypeError(
            f"{_quoted(name)} has activation={activation!r}, which no torch class has: the reverted layer "
            "would silently lose it. Construct the layer without activation, and add a module for it "
            "(nn.ReLU for 'relu') after it."
        )
    if any(kind.__module__.startswith("torch.distributed.") for kind in type(module).__mro__):
        raise TypeError(
            f"{_quoted(name)} ({type(module).__name__}) is sharded by itself, and the reverted layer would "
            "silently not be. Revert an unsharded copy of the model, and load the full state_dict into it."
        )


def _quoted(name: str) -> str:
    return repr(name) if name else "the module itself"


def _overridden(kind: type[nn.Module]) -> set[str]:
    """Returns the members that user subclasses in `kind` override, special methods aside."""
    own = {name for c in kind.__mro__ if not c.__module__.startswith("torch.nn.modules.") for name in vars(c)}
    special = {name for name in own if name.startswith("__")} - {"__call__"}
    return own & set(dir(nn.LazyBatchNorm2d)) - special - _REPLACEABLE


def _own_attributes(kind: type[nn.Module]) -> set[str]:
    """Returns the attributes that conversion and this package's classes in `kind` store on a module."""

    def annotated(torchs: bool) -> set[str]:
        classes = (c for c in kind.__mro__ if c.__module__.startswith("torch.") == torchs)
        return {name for c in classes for name in inspect.get_annotations(c)}

    return _STORED_ON_MODULE | annotated(torchs=False) - annotated(torchs=True)
