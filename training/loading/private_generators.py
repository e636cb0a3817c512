"""Generators of a data set's own, seeded as the global ones are.

MONAI's random transforms have one each, and so do many data sets that were written for NumPy. Their draws
would depend on which samples this process has fetched before, so on the number of workers and on
interruptions.
"""

from __future__ import annotations

import os
import pickle
import random
import sys
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import PurePath
from types import CellType, FunctionType, MethodType, ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from training.loading.generators import Seeds, seeds_of

MOST_OBJECTS, MOST_ITEMS = 50_000, 200
"""Where a search ends: objects in all, and items of one container, which may hold a million samples."""

_GLOBAL_NUMPY, _GLOBAL_PYTHON = np.random.mtrand._rand, random._inst
_PLAIN = (np.random.Generator, torch.Generator)
_LEAVES = (str, bytes, int, float, complex, type(None), Tensor, np.ndarray, type, ModuleType, PurePath)
_HELD = {
    FunctionType: ("__closure__", "__defaults__", "__kwdefaults__"),
    CellType: ("cell_contents",),  # which an empty one does not have
    MethodType: ("__self__", "__func__"),
    partial: ("func", "args", "keywords"),
}


class Place(NamedTuple):
    """Where a generator is. It may be replaced by another one later, as MONAI's `set_random_state` does."""

    owner: Any
    key: Any
    read: Callable[[Any, Any], Any]

    def generator(self) -> Any:
        """Returns what is there now if it is a generator, else None."""
        try:
            value = self.read(self.owner, self.key)
        except (AttributeError, LookupError, ValueError):  # ValueError: an empty cell
            return None
        return value if is_private(value) else None


class PrivateGenerators:
    """The generators of torch, NumPy and Python that `root` reaches, except for the global ones.

    They are searched for in attributes, lists, tuples and dicts, in what a function holds, and among the
    global names of the modules of all these. Generators in equal states get equal seeds: whoever gives two
    transforms the same seed wants the same draws. All others have seeds of their own.
    """

    def __init__(self, root: Any) -> None:
        self._root = root
        self._labels: dict[str, bytes] = {}
        self._places: dict[str, Place] = {}
        self._process: int | None = None

    def __reduce__(self) -> Any:  # a place may be a module's, which cannot be pickled
        return PrivateGenerators, (self._root,)

    @property
    def names(self) -> list[str]:
        """Where they are, as paths from the root."""
        return list(self._places)

    @property
    def is_new_here(self) -> bool:
        """Whether there was no search in this process yet."""
        return self._process != os.getpid()

    def search(self) -> bool:
        """Searches again, and returns whether there are more than before. Takes 1 to 10 ms."""
        self._process = os.getpid()
        found = {path: place for path, place in _places(self._root).items() if path not in self._places}
        self._places |= found
        self._labels |= _labels(found)
        return bool(found)

    def seed(self, origin: bytes) -> None:
        """Seeds all of them. Takes 3 to 20 µs each."""
        for path, place in self._places.items():
            generator = place.generator()
            if generator is not None:
                _seed(generator, seeds_of(origin + self._labels[path]))

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Puts them back as they were: the model may use one of them, too."""
        found = [place.generator() for place in self._places.values()]
        different = {id(generator): generator for generator in found if generator is not None}
        states = [(generator, state_of(generator)) for generator in different.values()]
        try:
            yield
        finally:
            for generator, state in states:
                restore_state(generator, state)


def _places(root: Any) -> dict[str, Place]:
    found: dict[str, Place] = {}
    seen = {id(root): root}  # holds the objects, so that no id comes up twice
    queue = deque([("", root)])
    while queue and len(seen) < MOST_OBJECTS:
        path, thing = queue.popleft()
        for place in _parts(thing):
            value = place.read(place.owner, place.key)
            name = f"{path}.{place.key}" if path else str(place.key)
            if is_private(value):
                found[name] = place
            elif not issubclass(type(value), _LEAVES) and id(value) not in seen:
                seen[id(value)] = value
                queue.append((name, value))
        of = thing if isinstance(thing, FunctionType) else type(thing)
        module = sys.modules.get(of.__module__ or "")
        if module is not None and id(module) not in seen:
            seen[id(module)] = module
            found |= {f"{module.__name__}:{place.key}": place for place in _globals_of(module)}
    return found


def _parts(thing: Any) -> Iterator[Place]:
    sequences: tuple[Any, ...] = (list, tuple)
    for kind in sequences:
        if issubclass(type(thing), kind):  # not by its own `__getitem__`, which may load something
            numbers = range(min(kind.__len__(thing), MOST_ITEMS))
            yield from (Place(thing, number, kind.__getitem__) for number in numbers)
    if issubclass(type(thing), dict):
        yield from (Place(thing, key, dict.__getitem__) for key in list(islice(dict.keys(thing), MOST_ITEMS)))
    for kind, names in _HELD.items():
        if type(thing) is kind:
            yield from (Place(thing, name, getattr) for name in names if hasattr(thing, name))
    classes = type(thing).__mro__
    of_class = [name for each in classes for name, value in vars(each).items() if is_private(value)]
    attributes = list(getattr(thing, "__dict__", ()))
    yield from (Place(thing, name, _attribute) for name in dict.fromkeys([*attributes, *of_class]))


def _attribute(thing: Any, name: str) -> Any:
    """Returns an attribute, of the class if the object has none, without calling a property."""
    own = vars(thing) if hasattr(thing, "__dict__") else {}
    return own[name] if name in own else getattr(type(thing), name)


def _globals_of(module: ModuleType) -> Iterator[Place]:
    for name, value in list(vars(module).items()):
        if is_private(value):
            yield Place(module, name, getattr)


def _labels(places: dict[str, Place]) -> dict[str, bytes]:
    """Returns what tells the seeds of each place from those of the others."""
    labels: dict[str, bytes] = {}
    first: dict[bytes, tuple[Any, str]] = {}  # by state
    for path, place in places.items():
        generator = place.generator()
        state = pickle.dumps((type(generator).__name__, state_of(generator)))
        other, label = first.setdefault(state, (generator, path))
        # One generator in two places, as MONAI's default, may become two that are to differ.
        labels[path] = (path if other is generator else label).encode()
    return labels


def is_private(value: Any) -> bool:
    """Returns whether a value is a generator of torch, NumPy or Python, and none of the global ones."""
    kind = type(value)  # isinstance would ask an object that stands in for another one, and may not exist yet
    if issubclass(kind, np.random.RandomState):
        return value is not _GLOBAL_NUMPY and type(value._bit_generator) is np.random.MT19937
    if issubclass(kind, random.Random):
        return value is not _GLOBAL_PYTHON and not issubclass(kind, random.SystemRandom)
    return issubclass(kind, _PLAIN) and value is not torch.default_generator


def _seed(generator: Any, seeds: Seeds) -> None:
    if isinstance(generator, torch.Generator):
        generator.manual_seed(seeds.torch)
    elif isinstance(generator, np.random.Generator):
        bits = generator.bit_generator
        bits.state = type(bits)(seeds.own).state
    elif isinstance(generator, np.random.RandomState):
        generator.seed(seeds.numpy)
    else:
        generator.seed(seeds.own)


def state_of(generator: Any) -> Any:
    """Returns the state of a private generator."""
    if isinstance(generator, torch.Generator):
        return generator.get_state()
    if isinstance(generator, np.random.Generator):
        return generator.bit_generator.state
    return generator.get_state() if isinstance(generator, np.random.RandomState) else generator.getstate()


def restore_state(generator: Any, state: Any) -> None:
    """Puts back what `state_of` returned."""
    if isinstance(generator, np.random.Generator):
        generator.bit_generator.state = state
    elif isinstance(generator, random.Random):
        generator.setstate(state)
    else:
        generator.set_state(state)
