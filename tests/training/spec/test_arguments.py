"""Whether a call is accepted, against `Signature.bind`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from itertools import chain, combinations

import pytest

from training.spec.arguments import arguments_problem


def plain(a, b=1, *, c, d=2): ...  # type: ignore[no-untyped-def]
def only_positional(a, /, b): ...  # type: ignore[no-untyped-def]
def any_positional(a, *args, c=1): ...  # type: ignore[no-untyped-def]
def any_named(a, **others): ...  # type: ignore[no-untyped-def]
def nothing() -> None: ...


NAMES = ("a", "b", "c", "d", "args", "e")
CALLS = [
    (count, names)
    for count in range(4)
    for names in chain.from_iterable(combinations(NAMES, size) for size in range(5))
]


@pytest.mark.parametrize("function", [plain, only_positional, any_positional, any_named, nothing])
def test_a_call_has_a_problem_exactly_if_it_does_not_bind(function: Callable[..., object]) -> None:
    signature = inspect.signature(function)
    for count, names in CALLS:
        args, named = [None] * count, dict.fromkeys(names)
        try:
            signature.bind(*args, **named)
            binds = True
        except TypeError:
            binds = False
        assert (arguments_problem(signature, args, named) is None) == binds, (count, names)
