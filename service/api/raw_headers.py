"""Headers as ASGI has them: pairs of bytes, their names in lower case. For what every request passes.

Starlette's classes copy and decode the list of headers each time that one is looked up.
"""

from __future__ import annotations

from collections.abc import Iterable

from starlette.types import Message, Scope

Pair = tuple[bytes, bytes]


def header_of(scope: Scope, name: bytes) -> str | None:
    """Returns the first value of the request's header of this name in lower case; None if it has none."""
    return next((value.decode("latin-1") for each, value in scope["headers"] if each == name), None)


def add_missing(start: Message, pairs: Iterable[Pair]) -> None:
    """Adds those headers that the response does not have."""
    there = {name for name, _ in start["headers"]}
    start["headers"] = [*start["headers"], *(pair for pair in pairs if pair[0] not in there)]


def set_header(start: Message, name: bytes, value: str) -> None:
    """Gives the response this header in place of any of the same name."""
    others = [pair for pair in start["headers"] if pair[0] != name]
    start["headers"] = [*others, (name, value.encode("latin-1"))]
