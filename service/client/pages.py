"""Lists that the service sends in pages."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

T_co = TypeVar("T_co", covariant=True)
T = TypeVar("T")
_SIZE = 100


class Page(Protocol[T_co]):
    """One page. next_cursor: of the next one; None: this is the last."""

    @property
    def items(self) -> Sequence[T_co]: ...

    @property
    def next_cursor(self) -> str | None: ...


def all_items(page: Callable[[list[tuple[str, Any]]], Page[T]], limit: int | None) -> Iterator[T]:
    """Yields the items of all pages, at most `limit` (None: all).

    page: requests a page, with these parameters.
    """
    cursor, remaining = None, limit
    while remaining is None or remaining > 0:
        size = _SIZE if remaining is None else min(remaining, _SIZE)
        found = page([("limit", size), *([("cursor", cursor)] if cursor else [])])
        yield from found.items
        remaining = None if remaining is None else remaining - len(found.items)
        cursor = found.next_cursor
        if not cursor:
            return
