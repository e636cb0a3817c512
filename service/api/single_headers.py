"""Headers that a request may have once: a second one is refused, so that none of the two wins unnoticed."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from service.access.sessions import FORGERY_HEADER
from service.api import request_scope
from service.api.problems import problem

SINGLE = (
    "Authorization",
    "Content-Type",
    "Host",
    "Idempotency-Key",
    "Last-Event-ID",
    "Origin",
    "Syncbn-User",
    FORGERY_HEADER,
    request_scope.HEADER,
)
"""Those that the service reads. What may be a list, as Accept and Cookie, is not among them."""


class SingleHeaders:
    """Answers 400 to a request that has one of SINGLE twice, also with equal values (ASGI middleware)."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (twice := _repeated(Headers(scope=scope))):
            detail = f"the request has the header {twice} more than once; send one of them"
            await problem(scope["path"], 400, "Bad Request", detail)(scope, receive, send)
            return
        await self._app(scope, receive, send)


def _repeated(headers: Headers) -> str | None:
    return next((name for name in SINGLE if len(headers.getlist(name)) > 1), None)
