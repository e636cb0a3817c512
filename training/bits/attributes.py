"""Numbers that modules keep as plain attributes, such as a count of steps: each shard has its own."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

_PLAIN = {int, float, complex, bool, str, type(None), Tensor}
LIBRARIES = {"torch", "lightning", "torchmetrics", "sync_bn", "training"}
"""Packages whose modules change nothing of that kind in a step."""

Values = dict[str, Any]


class ShardAttributes:
    """The plain attributes of a user's modules, for each shard of this rank, put in place in turn.

    A step that counts itself (`self.steps += 1`) then counts one for each shard, whichever shards a rank has.
    Between steps a module has those of the rank's first shard; what is set then, all shards get.
    """

    def __init__(self, module: nn.Module, shards: int) -> None:
        self._parts = users_modules(module)
        self._names: list[set[str]] = [set() for _ in self._parts]
        """Of each part: those that have been plain; a shard may since have put something else there."""
        self._left: list[Values] = [{} for _ in self._parts]
        self._of_shard: list[list[Values]] = [[{} for _ in self._parts] for _ in range(shards)]
        self._entered: int | None = None

    def begin(self) -> None:
        """Gives all shards what was set since the last step."""
        now = self._held()
        for index, (held, left) in enumerate(zip(now, self._left, strict=True)):
            changed = {name: value for name, value in held.items() if left.get(name, self) is not value}
            for values in self._of_shard:
                values[index].update(changed)
                for name in left.keys() - held.keys():
                    values[index].pop(name, None)

    def enter(self, shard: int) -> None:
        """Puts the attributes of a shard of this rank in place."""
        self._keep()
        self._entered = shard
        self._put(self._of_shard[shard])

    def leave(self) -> None:
        """Puts those of the first shard of this rank in place, for hooks."""
        self._keep()
        self._entered = None
        self._put(self._of_shard[0])
        self._left = [dict(values) for values in self._of_shard[0]]

    def _keep(self) -> None:
        if self._entered is not None:
            self._of_shard[self._entered] = self._held()

    def _held(self) -> list[Values]:
        for part, names in zip(self._parts, self._names, strict=True):
            names.update(name for name, value in vars(part).items() if type(value) in _PLAIN)
        return [_of(part, names) for part, names in zip(self._parts, self._names, strict=True)]

    def _put(self, of_parts: Iterable[Values]) -> None:
        for part, names, values in zip(self._parts, self._names, of_parts, strict=True):
            attributes = vars(part)
            for name in names - values.keys():
                attributes.pop(name, None)
            attributes.update(values)


def users_modules(module: nn.Module) -> list[nn.Module]:
    """Returns those of a module's modules that are a user's own, or of a library that is not known here."""
    return [part for part in module.modules() if type(part).__module__.partition(".")[0] not in LIBRARIES]


def _of(part: nn.Module, names: set[str]) -> Values:
    attributes = vars(part)
    return {name: attributes[name] for name in names if name in attributes}
