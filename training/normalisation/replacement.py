"""Finds the BatchNorm layers of a model and puts other layers in their places."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils import parametrize

from training.errors import BuildError
from training.normalisation.ghost import GhostBatchNorm

_PLAIN_FORWARDS = (_BatchNorm.forward, nn.SyncBatchNorm.forward)
_SHOWN = 10


class Position(NamedTuple):
    """A place of a layer in the model: an attribute, or an index, of a module."""

    parent: nn.Module
    key: str


def batch_norms(model: nn.Module) -> dict[str, _BatchNorm]:
    """Returns each BatchNorm layer once, by its first name in the model; none that is replaced already."""
    return {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, _BatchNorm) and not isinstance(layer, GhostBatchNorm)
    }


def check_replaceable(layers: Mapping[str, _BatchNorm]) -> None:
    """Raises BuildError for a BatchNorm layer with behaviour that replacing would lose."""
    for name, layer in layers.items():
        if more := _more_than_batch_norm(layer):
            raise BuildError("norm.kind", f"{where(name)} is a {type(layer).__qualname__}, {more}")


def _more_than_batch_norm(layer: _BatchNorm) -> str:
    if isinstance(layer, LazyModuleMixin):
        return "which does not know its number of features yet; construct it with that number"
    if type(layer).forward not in _PLAIN_FORWARDS:
        return (
            "which has its own forward; use a plain nn.BatchNorm and a separate module for the rest, "
            "or norm.kind: keep"
        )
    if parametrize.is_parametrized(layer):
        return "whose parameters another module computes; remove that parametrization, or use norm.kind: keep"
    return ""


def become(layer: nn.Module, new: nn.Module) -> None:
    """Makes a layer what `new` is, and `new` unusable. Hooks and the training flag of the layer stay.

    The object stays the same, so it is the new layer wherever the model refers to it: in several places, in
    a plain list, or as the whole model.
    """
    kept = {
        name: value
        for name, value in vars(layer).items()
        if "_hooks" in name or name in {"training", "_is_full_backward_hook"}
    }
    vars(layer).clear()
    vars(layer).update({**vars(new), **kept})
    layer.__class__ = type(new)


def relus_after(model: nn.Module, layer: nn.Module) -> list[Position]:
    """Returns the places of the nn.ReLU after each place of a layer; none if one is not followed by one.

    It is known to follow directly in an nn.Sequential alone; elsewhere, a forward may do anything between.
    """
    places = [
        Position(module, key)
        for module in model.modules()
        for key, child in module._modules.items()
        if child is layer
    ]
    found: list[Position] = []
    for place in places:
        after = _after(place)
        if after is None or type(after.parent._modules[after.key]) is not nn.ReLU:
            return []
        found.append(after)
    return found


def _after(place: Position) -> Position | None:
    parent, key = place
    if not isinstance(parent, nn.Sequential) or type(parent).forward is not nn.Sequential.forward:
        return None
    keys = list(parent._modules)
    rest = keys[keys.index(key) + 1 :]
    return Position(parent, rest[0]) if rest else None


def remove(places: Iterable[Position]) -> None:
    """Puts nn.Identity in each place, so that the names of other layers stay."""
    for parent, key in places:
        parent._modules[key] = nn.Identity()


def convolution_before(model: nn.Module, layers: Mapping[str, _BatchNorm]) -> Iterator[tuple[str, bool]]:
    """Yields the name of each convolution, and whether a layer with as many channels comes next.

    Next in the order in which the model registers modules with parameters, which is that of its constructor.
    """
    leaves = [
        (name, module)
        for name, module in model.named_modules()
        if any(True for _ in module.parameters(recurse=False)) or isinstance(module, _BatchNorm)
    ]
    known = set(layers.values())
    for (name, module), (_, after) in zip(leaves, [*leaves[1:], ("", nn.Identity())], strict=True):
        if isinstance(module, nn.modules.conv._ConvNd):
            yield name, after in known and after.num_features == module.out_channels


def where(name: str) -> str:
    """Returns a layer's name for a message."""
    return f"layer {name!r}" if name else "the model"


def listed(names: Iterable[str]) -> str:
    """Returns the first names, and how many there are more."""
    names = [name or "the model itself" for name in names]
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def classes_of(layers: Iterable[nn.Module]) -> str:
    """Returns how many layers there are of each class, such as "2 BatchNorm1d and 3 BatchNorm2d"."""
    names = [type(layer).__name__ for layer in layers]
    return " and ".join(f"{names.count(name)} {name}" for name in dict.fromkeys(names))
