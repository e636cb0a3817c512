"""Streams that keep pages up to date: parts of a page are rendered once for all who look at it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable

from fastapi import Request, Response
from fastapi.sse import format_sse_event

from service.api.context import Context
from service.api.looks import MOMENT
from service.errors import Unavailable


def stream(request: Request, view: Hashable, parts: Callable[[], str]) -> Response:
    """Streams the parts of a page, now and whenever they are others than before.

    view: pages with the same view share what is rendered; it has to name everything that `parts` depends on,
    the caller's scope included. parts: returns elements `hx-partial`; blocks; may raise Unavailable.
    """
    services: Context = request.app.state.context
    # Links are relative to the page, and so another text on a page of another depth.
    return services.streams.response(MOMENT, (view, request.scope["path"]), _News(parts), "")


class _News:
    """The rendered parts after those with a digest; the event `away` while they cannot be rendered."""

    def __init__(self, parts: Callable[[], str]) -> None:
        self._parts = parts

    def __call__(self, seen: str) -> tuple[bytes, str, bool]:
        try:
            text = self._parts()
        except Unavailable as error:
            away = str(error)
            return (b"" if away == seen else format_sse_event(event="away", data_str=away)), away, False
        digest = hashlib.sha256(text.encode()).hexdigest()[:16]
        return (b"" if digest == seen else format_sse_event(data_str=text)), digest, False
