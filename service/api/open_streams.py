"""Ends streams of events with what opened them: a key that expires or is revoked, a session that ends."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.credentials import Credentials, Denied
from service.errors import Unavailable

_UNKNOWN_S = 10.0
"""For how long no stream asks again after the database did not answer."""


class OpenStreams:
    """Looks before each part of a stream, heartbeats included, whether its reader may still read it.

    Whoever connects again gets a refusal, which says why. While the database does not answer, streams go on.
    Not thread-safe: for one event loop.
    """

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials
        self._one_lookup = asyncio.Lock()  # many readers have one key; it is looked up for all of them
        self._ask_again_at = 0.0

    async def answer(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        """Lets `app` answer a request, for as long as it may be answered if the answer is a stream."""
        is_stream = False

        async def send_while_open(message: Message) -> None:
            nonlocal is_stream
            if message["type"] == "http.response.start":
                content = Headers(raw=message["headers"]).get("content-type", "")
                is_stream = content.startswith("text/event-stream")
            elif is_stream and not await self._is_open(scope):
                await send({"type": "http.response.body", "body": b"", "more_body": False})
                raise _Closed
            await send(message)

        with suppress(_Closed):
            await app(scope, receive, send_while_open)

    async def _is_open(self, scope: Scope) -> bool:
        async with self._one_lookup:
            if time.monotonic() < self._ask_again_at:
                return True
            try:
                await self._credentials.caller(scope)
            except Denied:
                return False
            except Unavailable:
                self._ask_again_at = time.monotonic() + _UNKNOWN_S
            return True


class _Closed(Exception):
    """Ends the app's part of a stream."""
