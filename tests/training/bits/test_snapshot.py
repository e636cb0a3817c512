"""What a step has changed in Python's memory is put back."""

from __future__ import annotations

import functools
import random
from collections import OrderedDict, deque
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from tests.training.bits.faulty import counter
from tests.training.bits.runs import digest
from training.bits.snapshot import Snapshot
from training.loading.private_generators import state_of

GLOBAL: dict[str, Any] = {"inner": [1]}
number = 1


class Helper:
    def __init__(self) -> None:
        self.items = deque([1, 2])


class Holder(nn.Module):
    shared: ClassVar[list[int]] = []
    plain: ClassVar[int] = 1

    def __init__(self) -> None:
        super().__init__()
        self.table: dict[str, Any] = OrderedDict(a={1}, b=bytearray(b"ab"), c=np.zeros(2))
        self.tensors: list[Any] = [torch.zeros(2), (torch.ones(1),)]
        self.helper, self.layer, self.counted = Helper(), nn.Linear(1, 1), counter()
        self.cached = functools.lru_cache(lambda: torch.rand(()))
        self.generators = torch.Generator(), np.random.default_rng(1), random.Random(1)
        self.register_buffer("mean", torch.zeros(2))
        self.alike: Any = self.table


def _move_first(holder: Holder) -> None:
    holder.table["a"] = holder.table.pop("a")


def _count_globally(_: Holder) -> None:
    global number
    number += 1


CHANGES: dict[str, Callable[[Holder], Any]] = {
    "a dict gets an item": lambda holder: holder.table.update(new=1),
    "a dict loses an item": lambda holder: holder.table.clear(),
    "a dict is in another order": _move_first,
    "a dict is replaced": lambda holder: setattr(holder, "table", {}),
    "a set": lambda holder: holder.table["a"].add(2),
    "a bytearray": lambda holder: holder.table["b"].extend(b"c"),
    "an array": lambda holder: np.copyto(holder.table["c"], 1),
    "a tensor in a list": lambda holder: holder.tensors[0].add_(1),
    "a tensor in a tuple": lambda holder: holder.tensors[1][0].add_(1),
    "a list": lambda holder: holder.tensors.append(torch.ones(1)),
    "a buffer": lambda holder: holder.get_buffer("mean").add_(1),
    "a new buffer": lambda holder: holder.register_buffer("new", torch.ones(1)),
    "a new layer": lambda holder: setattr(holder, "late", nn.Linear(1, 1)),
    "an object's container": lambda holder: holder.helper.items.append(3),
    "an object's attribute": lambda holder: setattr(holder.helper, "new", 1),
    "a generator of torch": lambda holder: torch.rand((), generator=holder.generators[0]),
    "a generator of NumPy": lambda holder: holder.generators[1].random(),
    "a generator of Python": lambda holder: holder.generators[2].random(),
    "a closure": lambda holder: holder.counted(),
    "a cache": lambda holder: holder.cached(),
    "a class's container": lambda holder: holder.shared.append(1),
    "a class's attribute": lambda holder: setattr(type(holder), "plain", 2),
    "a new attribute of a class": lambda holder: setattr(type(holder), "other", 2),
    "a global container": lambda _: GLOBAL["inner"].append(2),
    "a global name": _count_globally,
}


def _text(holder: Holder) -> str:
    attributes = {name: value for name, value in vars(holder).items() if not name.startswith("_")}
    names = [list(holder._modules), list(holder._buffers.items()), list(vars(holder.helper).items())]
    of_class = {name: value for name, value in vars(Holder).items() if not name.startswith("_")}
    cells: Any = holder.counted
    closed = [cell.cell_contents for cell in cells.__closure__]
    cached = holder.cached.cache_info().currsize
    states = [digest(state_of(generator)) for generator in holder.generators]
    return f"{states} {attributes} {names} {of_class} {closed} {cached} {GLOBAL} {number}"


@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_is_put_back_as_often_as_need_be(change: str) -> None:
    holder = Holder()
    before, snapshot = _text(holder), Snapshot(holder)

    for _ in range(2):
        CHANGES[change](holder)
        assert _text(holder) != before
        snapshot.restore()
        assert _text(holder) == before
    assert holder.alike is holder.table


def test_objects_of_installed_packages_are_left_alone() -> None:
    holder = Holder()
    holder.alike = SimpleNamespace(count=1)
    snapshot = Snapshot(holder)

    holder.alike.count = 2
    snapshot.restore()

    assert holder.alike.count == 2
