"""What protects browsers: no foreign page reaches the API through one, and no answer runs anything in one."""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.access.rules import SAFE_METHODS
from service.api.problems import problem
from service.api.raw_headers import add_missing, header_of

SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": (
        "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
    ),
}
"""Of every answer, unless it has its own. There is no header of CORS: pages from elsewhere read nothing."""
_PAIRS = [(name.lower().encode(), value.encode()) for name, value in SECURITY_HEADERS.items()]


class BrowserGuard:
    """Refuses requests that a foreign web page makes a browser send (ASGI middleware).

    With `loopback_only` (no API key is set), serves only requests addressed to a loopback name or address,
    which stops DNS rebinding: a foreign name that resolves to 127.0.0.1. With or without a key, refuses
    requests from another origin that change anything (CSRF). Adds SECURITY_HEADERS to every answer.
    """

    def __init__(self, app: ASGIApp, *, loopback_only: bool) -> None:
        self._app = app
        self._loopback_only = loopback_only

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
        elif detail := self._objection(scope):
            await problem(scope["path"], 403, "Forbidden", detail)(scope, receive, _secured(send))
        else:
            await self._app(scope, receive, _secured(send))

    def _objection(self, scope: Scope) -> str | None:
        host, origin = header_of(scope, b"host") or "", header_of(scope, b"origin")
        if self._loopback_only and not _is_loopback(host):
            return (
                f"without an API key only requests to localhost or 127.0.0.1 are served, not to {host!r}; "
                "start the service with SYNCBN_API_KEY to serve others"
            )
        if origin is not None and scope["method"] not in SAFE_METHODS and urlsplit(origin).netloc != host:
            return f"a web page of {origin} may not change anything here"
        return None


def _secured(send: Send) -> Send:
    async def secured(message: Message) -> None:
        if message["type"] == "http.response.start":
            add_missing(message, _PAIRS)
        await send(message)

    return secured


def _is_loopback(host: str) -> bool:
    match = re.fullmatch(r"\[?([^][@]*?)\]?(:\d+)?", host)
    name = match[1].lower() if match else ""
    try:
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
