"""The size limit of every request body: what no route has allowed more of is refused while it arrives."""

from __future__ import annotations

from typing import Any

from fastapi import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

DEFAULT_BYTES = 2**20
_KEY = "syncbn.body_limit"


class BodyLimit:
    """Counts the bytes of each request's body as the app reads it (ASGI middleware).

    A route that reads a larger body says so with `allow` first. Raises HTTPException(413) in the route.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limit = _Limit()

        async def counted() -> Message:
            message = await receive()
            limit.add(len(message.get("body", b"")))
            return message

        scope[_KEY] = limit
        await self._app(scope, counted, send)


class _Limit:
    """One request's limit. An object, because routers hand on copies of the scope."""

    def __init__(self) -> None:
        self.maximum, self.what, self._seen = DEFAULT_BYTES, "this request's body", 0

    def add(self, size: int) -> None:
        self._seen += size
        if self._seen > self.maximum:
            raise too_large(self.what, self.maximum)


def allow(scope: Scope, maximum: int, what: str) -> None:
    """Sets the limit of the request's body, in bytes. what: the body as the error names it."""
    limit: Any = scope.get(_KEY)
    if limit is not None:
        limit.maximum, limit.what = maximum, what


def too_large(what: str, maximum: int) -> HTTPException:
    """Returns the error for a body of more than `maximum` bytes."""
    return HTTPException(413, f"{what} may have at most {maximum} bytes")
