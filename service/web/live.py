"""Streams that keep pages up to date: parts of a page are rendered once for all who look at it."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence

from fastapi import Request, Response
from fastapi.sse import format_sse_event

from service.api.context import Context
from service.api.looks import MOMENT
from service.api.sse import Topic
from service.errors import Unavailable


def stream(
    request: Request, view: Hashable, parts: Callable[[], Sequence[bytes]], topic: Topic = MOMENT
) -> Response:
    """Streams the parts of a page, each now and whenever it is another one than before.

    view: pages with the same view share what is rendered; it has to name everything that `parts` depends on,
    the caller's scope included. parts: returns elements `hx-partial`, as `service.web.page.fragment` does;
    all are sent again if they are not as many as before; blocks; may raise Unavailable. topic: what has to
    change for the parts to be rendered again.
    """
    services: Context = request.app.state.context
    # Links are relative to the page, and so another text on a page of another depth.
    nothing: Seen = ()
    return services.streams.response(topic, (view, request.scope["path"]), News(parts), nothing)


Seen = tuple[int | str, ...]
"""The hashes of the parts that a page has; the problem alone while it shows one."""


class News:
    """The parts that are others than those a page has; the event `away` while they cannot be rendered."""

    def __init__(self, parts: Callable[[], Sequence[bytes]]) -> None:
        self._parts = parts

    def __call__(self, seen: Seen) -> tuple[bytes, Seen, bool]:
        try:
            parts = self._parts()
        except Unavailable as error:
            return away_news(error, seen), away(error), False
        hashes = tuple(map(hash, parts))
        known = seen if len(seen) == len(hashes) else ("",) * len(hashes)
        changed = (part for part, now, before in zip(parts, hashes, known, strict=True) if now != before)
        return event(changed), hashes, False


def away(error: Unavailable) -> Seen:
    """Returns what a page has that shows this problem."""
    return (str(error),)


def away_news(error: Unavailable, seen: Seen) -> bytes:
    """Returns the event `away`; nothing for a page that shows this problem already."""
    return b"" if seen == away(error) else format_sse_event(event="away", data_str=str(error))


def event(parts: Iterable[bytes]) -> bytes:
    """Returns the event that brings these parts; nothing if there are none."""
    lines = b"".join(parts)
    return lines + b"\n" if lines else b""
