"""What surrounds every request: its id, its place in the figures, its line in the log."""

from __future__ import annotations

import logging
import re
import uuid
from time import monotonic

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service import logs
from service.api.raw_headers import header_of, set_header
from service.metrics.requests import RequestFigures

HEADER = "X-Request-Id"
_NAME = HEADER.lower().encode()
_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}", re.ASCII)
_NOT_LOGGED = {"/healthz"}  # containers ask it every few seconds

log = logging.getLogger(__name__)


class RequestScope:
    """Outermost ASGI layer. Takes the request's id from its header X-Request-Id, or makes one.

    The response has the same header, and so have problem documents and log records the id.
    """

    def __init__(self, app: ASGIApp, figures: RequestFigures) -> None:
        self._app, self._figures = app, figures

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, request_id = monotonic(), _request_id(scope)

        async def note(message: Message) -> None:
            if message["type"] == "http.response.start":
                set_header(message, _NAME, request_id)
                self._note(scope, message["status"], monotonic() - began)
            await send(message)

        with logs.about(request_id=request_id):
            await self._app(scope, receive, note)

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", None)
        self._figures.note(scope["method"], route, status, seconds)
        if log.isEnabledFor(logging.INFO) and scope["path"] not in _NOT_LOGGED:
            client = scope.get("client")
            about = {
                "method": scope["method"],
                "path": scope["path"],  # without the query
                "status": status,
                "seconds": round(seconds, 4),
                "client": client[0] if client else "",
            }
            log.info("%s %s %d", scope["method"], scope["path"], status, extra={"about": about})


def _request_id(scope: Scope) -> str:
    given = header_of(scope, _NAME)
    return given if given and _ID.fullmatch(given) else uuid.uuid4().hex
