"""Access control: the API key; without one, loopback requests only; no cross-origin changes."""

from __future__ import annotations

import hmac
import ipaddress
import re
from typing import Annotated
from urllib.parse import urlsplit

from fastapi import Depends, HTTPException
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from service.api.context import Services
from service.api.problems import problem

_SAFE_METHODS = {"GET", "HEAD", "OPTIONS"}
_bearer = HTTPBearer(auto_error=False, description="The server's SYNCBN_API_KEY, if it has one")


async def require_key(
    services: Services, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]
) -> None:
    """Raises HTTPException(401) unless the request carries the API key. Compares in constant time."""
    key = services.settings.api_key
    if key is None:
        return
    given = credentials.credentials if credentials else ""
    # Starlette decodes header bytes as Latin-1, whatever their encoding.
    if not hmac.compare_digest(given.encode("latin-1"), key.get_secret_value().encode()):
        raise HTTPException(
            401,
            "this service requires its API key: Authorization: Bearer KEY (SYNCBN_API_KEY)",
            headers={"WWW-Authenticate": "Bearer"},
        )


class BrowserGuard:
    """Refuses requests that a foreign web page makes a browser send (ASGI middleware).

    With `loopback_only` (no API key is set), serves only requests addressed to a loopback name or address,
    which stops DNS rebinding: a foreign name that resolves to 127.0.0.1. With or without a key, refuses
    requests from another origin that change anything (CSRF).
    """

    def __init__(self, app: ASGIApp, *, loopback_only: bool) -> None:
        self._app = app
        self._loopback_only = loopback_only

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (detail := self._objection(scope)):
            await problem(scope["path"], 403, "Forbidden", detail)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _objection(self, scope: Scope) -> str | None:
        headers = Headers(scope=scope)
        host, origin = headers.get("host", ""), headers.get("origin")
        if self._loopback_only and not _is_loopback(host):
            return (
                f"without an API key only requests to localhost or 127.0.0.1 are served, not to {host!r}; "
                "start the service with SYNCBN_API_KEY to serve others"
            )
        if origin is not None and scope["method"] not in _SAFE_METHODS and urlsplit(origin).netloc != host:
            return f"a web page of {origin} may not change anything here"
        return None


def _is_loopback(host: str) -> bool:
    match = re.fullmatch(r"\[?([^][@]*?)\]?(:\d+)?", host)
    name = match[1].lower() if match else ""
    try:
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
