"""Changing the class of a batch normalisation in place, and changing it back.

The module object stays: parameters, buffers, hooks, flags, the places where it is shared and everything that
anyone stored on it survive, because nothing touches them. What the way back needs is kept on the module.
"""

import torch.distributed as dist
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils import parametrize

# The computations that SyncBatchNorm stands in for; a class with any other forward does something more.
_PLAIN_FORWARDS = (_BatchNorm.forward, nn.SyncBatchNorm.forward)
_CLASS_BY_INPUT_DIM = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}


def convert(
    module: nn.Module, target: type[_BatchNorm], process_group: dist.ProcessGroup | None
) -> nn.Module:
    """Make every batch normalisation in `module` a `target`; all of them or, with an error, none."""
    found = [(name, m) for name, m in module.named_modules() if isinstance(m, _BatchNorm)]
    for name, batch_norm in found:
        if not isinstance(batch_norm, target):
            _refuse_what_would_be_lost(
                batch_norm, f"{name!r}" if name else "the module itself", target.__name__
            )
    for _, batch_norm in found:
        _convert_one(batch_norm, target, process_group)
    return module


def revert(module: nn.Module, target: type[_BatchNorm]) -> nn.Module:
    """Give every `target` in `module` the class it had before `convert`."""
    for batch_norm in module.modules():
        if isinstance(batch_norm, target):
            _revert_one(batch_norm)
    return module


def _convert_one(
    module: _BatchNorm, target: type[_BatchNorm], process_group: dist.ProcessGroup | None
) -> None:
    state = module.__dict__
    if not isinstance(module, target):
        state["_original_class"] = _class_without_parametrizations(module)
        if "process_group" in state:
            state["_original_process_group"] = state["process_group"]
        state.setdefault("process_group", None)
        _set_class(module, target)
    if process_group is not None:
        state["process_group"] = process_group


def _revert_one(module: _BatchNorm) -> None:
    state = module.__dict__
    seen_dim = state.pop("_last_input_dim", 4)
    original_class = state.pop("_original_class", None) or _CLASS_BY_INPUT_DIM.get(seen_dim, nn.BatchNorm2d)
    del state["process_group"]
    if "_original_process_group" in state:
        state["process_group"] = state.pop("_original_process_group")
    _set_class(module, original_class)


def _refuse_what_would_be_lost(module: _BatchNorm, where: str, target: str) -> None:
    kind = type(module)
    if isinstance(module, LazyModuleMixin):
        raise ValueError(
            f"{where} ({kind.__name__}) does not know its number of features yet. "
            "Run one batch through the model, then convert it."
        )
    if kind.forward not in _PLAIN_FORWARDS or "forward" in module.__dict__:
        raise TypeError(
            f"{where} ({kind.__module__}.{kind.__qualname__}) has a forward of its own, which {target} would "
            "silently replace. Put a plain nn.BatchNorm there and a module for the rest beside it, or "
            "convert the parts of the model around it."
        )


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
