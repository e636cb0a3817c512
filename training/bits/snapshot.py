"""What a step may change in Python's memory, put back as it was.

That is what a user's modules and objects hold: attributes, lists, dicts and other containers, tensors, arrays
and generators in them, what functions close over, attributes of classes, and global names of the user's
files. Objects of installed packages that are not modules of torch are left alone, as are data sets, unless
they are what is asked for, and the trainer.
"""

from __future__ import annotations

import functools
import math
import operator
import sys
import sysconfig
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from types import CellType, FunctionType, MethodType, ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from training.bits.attributes import LIBRARIES
from training.bits.checksums import Checksum, checksum, is_readable
from training.loading.private_generators import is_private, restore_state, state_of


class Limits(NamedTuple):
    """Where a search ends: the number of objects, and the bytes of all tensors and arrays that are copied.

    each: the bytes of one; a larger one is left alone, as data. not_entered: classes of what is not searched.
    """

    objects: int
    each: int
    in_all: float
    not_entered: tuple[type, ...]


OF_MODELS = Limits(50_000, 2**28, math.inf, (Dataset, DataLoader, LightningDataModule))
OF_DATA = Limits(5_000, 2**24, 2**28, (DataLoader, LightningDataModule))
"""What a data set counts and marks is small, and what it caches stands in a container, without its data."""

_LEFT_ALONE = (str, bytes, int, float, complex, type(None), nn.Parameter)
_CACHED = type(functools.lru_cache(lambda: None))
_INSTALLED = tuple(sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib"))

Undo = Callable[[], None]


class Snapshot:
    """The state of what `roots` reach, to be put back by `restore`, as often as need be."""

    def __init__(self, *roots: Any, limits: Limits = OF_MODELS) -> None:
        self._held = list(_reached(roots, limits))  # so that no id comes up twice
        self._undo: list[Undo] = []
        left = limits.in_all
        for thing in self._held:
            size = _size(thing)
            undo = _undo_of(thing) if size <= min(limits.each, left) else None
            if undo is not None:
                self._undo.append(undo)
                left -= size

    def restore(self) -> None:
        with torch.no_grad():
            for undo in self._undo:
                undo()


def _reached(roots: Sequence[Any], limits: Limits) -> Iterator[Any]:
    seen, queue = {id(root) for root in roots}, deque(roots)
    while queue and len(seen) < limits.objects:
        thing = queue.popleft()
        yield thing
        for part in _parts(thing, limits.not_entered):
            if not issubclass(type(part), _LEFT_ALONE) and id(part) not in seen:
                seen.add(id(part))
                queue.append(part)


def _parts(thing: Any, not_entered: tuple[type, ...]) -> Iterable[Any]:
    kind = type(thing)
    if issubclass(kind, dict):
        return list(thing.values())
    if issubclass(kind, list | tuple | set | frozenset | deque):
        return list(thing)
    if kind is CellType:
        return _content(thing)
    if kind is FunctionType:
        held = (*(thing.__closure__ or ()), thing.__defaults__, thing.__kwdefaults__, thing.__dict__)
        return [*held, sys.modules.get(thing.__module__)] if _is_users(thing.__module__) else ()
    if kind is MethodType:
        return thing.__self__, thing.__func__
    if kind is partial:
        return thing.func, thing.args, thing.keywords
    if kind is ModuleType:
        return [vars(thing)] if _is_users(thing.__name__) else ()
    if issubclass(kind, type):
        return list(vars(thing).values()) if _is_users(thing.__module__) else ()
    if issubclass(kind, not_entered):
        return ()
    if issubclass(kind, nn.Module | Dataset) or _is_users(kind.__module__):
        return getattr(thing, "__dict__", None), kind, sys.modules.get(kind.__module__)
    return ()


def _content(cell: CellType) -> tuple[Any, ...]:
    try:
        return (cell.cell_contents,)
    except ValueError:  # empty
        return ()


@functools.cache
def _is_users(module: str | None) -> bool:
    """Returns whether a Python module is a user's own."""
    if module is None or module.partition(".")[0] in LIBRARIES:
        return False
    path = getattr(sys.modules.get(module), "__file__", None)
    return path is not None and not path.startswith(_INSTALLED)


def _size(thing: Any) -> int:
    """Returns how many bytes of a thing are copied."""
    kind = type(thing)
    if kind is np.ndarray or (issubclass(kind, Tensor) and is_readable(thing)):
        size: int = thing.nbytes
        return size
    return 0


def _undo_of(thing: Any) -> Undo | None:
    """Returns what puts the contents of a thing back, None if it has none that may change."""
    kind = type(thing)
    if issubclass(kind, dict):
        return partial(_restore_dict, thing, dict(thing))
    if issubclass(kind, list | deque):
        return partial(_restore_list, thing, list(thing))
    if issubclass(kind, set | bytearray):
        return partial(_restore_equal, thing, kind(thing))
    if issubclass(kind, Tensor) and is_readable(thing):
        return partial(_restore_tensor, thing, thing.detach().clone(), checksum(thing))
    if is_private(thing):
        return partial(restore_state, thing, state_of(thing))
    if kind is np.ndarray:
        return partial(_restore_array, thing, thing.copy())
    if kind is CellType:
        return partial(setattr, thing, "cell_contents", *content) if (content := _content(thing)) else None
    if kind is _CACHED:
        return None if thing.cache_info().currsize else thing.cache_clear
    if issubclass(kind, type) and _is_users(thing.__module__):
        return partial(_restore_class, thing, dict(vars(thing)))
    return None


def _same(one: Iterable[Any], other: list[Any]) -> bool:
    one = list(one)
    return len(one) == len(other) and all(map(operator.is_, one, other))


def _restore_dict(thing: Any, saved: dict[Any, Any]) -> None:
    for key in [key for key in thing if key not in saved]:
        del thing[key]
    for key, value in saved.items():
        if key not in thing or thing[key] is not value:
            thing[key] = value
    if not _same(thing, list(saved)):  # another order
        thing.clear()
        thing.update(saved)


def _restore_list(thing: Any, items: list[Any]) -> None:
    if not _same(thing, items):
        thing.clear()
        thing.extend(items)


def _restore_equal(thing: Any, saved: Any) -> None:
    if thing != saved:
        thing.clear()
        thing.update(saved) if isinstance(saved, set) else thing.extend(saved)


def _restore_tensor(thing: Tensor, saved: Tensor, number: Checksum) -> None:
    if checksum(thing) != number:
        thing.copy_(saved)


def _restore_array(thing: Any, saved: Any) -> None:
    if thing.tobytes() != saved.tobytes():
        thing[...] = saved


def _restore_class(thing: type, saved: dict[str, Any]) -> None:
    now = vars(thing)
    for name in [name for name in {**saved, **now} if not name.startswith("__")]:
        if name not in saved:
            delattr(thing, name)
        elif now.get(name) is not saved[name]:
            setattr(thing, name, saved[name])
