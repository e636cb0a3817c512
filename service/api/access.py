"""Who is served: a key where one is set, this machine alone where none is, and no foreign web page."""

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
_bearer = HTTPBearer(auto_error=False, description="SYNCBN_API_KEY of the server, where it has one")


def require_key(
    services: Services, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]
) -> None:
    """401 unless the request carries the API key; compares in constant time."""
    key = services.settings.api_key
    if key is None:
        return
    given = credentials.credentials if credentials else ""
    # Header bytes reach us as Latin-1, whatever they meant.
    if not hmac.compare_digest(given.encode("latin-1"), key.get_secret_value().encode()):
        raise HTTPException(
            401,
            "this service wants its API key: Authorization: Bearer KEY (SYNCBN_API_KEY)",
            headers={"WWW-Authenticate": "Bearer"},
        )


class BrowserGuard:
    """Refuses what only a browser lured by somebody else would send.

    Without an API key whoever reaches the port may use it, so only requests addressed to this machine are
    served: a foreign name that resolves to 127.0.0.1 (DNS rebinding) is not. And no page from elsewhere may
    change anything, key or not.
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
                f"without an API key only this machine is served (localhost, 127.0.0.1), not {host!r}; "
                "start the service with SYNCBN_API_KEY to serve others"
            )
        if origin is not None and scope["method"] not in _SAFE_METHODS and urlsplit(origin).netloc != host:
            return f"a page of {origin} may not change anything here"
        return None


def _is_loopback(host: str) -> bool:
    match = re.fullmatch(r"\[?([^][@]*?)\]?(:\d+)?", host)
    name = match[1].lower() if match else ""
    try:
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
