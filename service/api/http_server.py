"""The HTTP server of the API."""

from __future__ import annotations

import asyncio

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

SECONDS_BETWEEN = 0.5
MAX_HEAD_BYTES = 2**16


class HttpServer(uvicorn.Server):
    """uvicorn's server, which looks twice a second instead of ten times whether it has to end.

    An idle server does nothing else. Each look also sets the clock of its Date headers.
    """

    async def main_loop(self) -> None:
        while not await self.on_tick(0):
            await asyncio.sleep(SECONDS_BETWEEN)


class BoundedHttp(HttpToolsProtocol):
    """uvicorn's protocol over httptools, a parser in C, which takes a third of the time of h11.

    Unlike h11, it keeps a head of any length. This one refuses a request whose head, or what stands between
    the parts of its body, is longer than MAX_HEAD_BYTES and one read of the socket.
    """

    _unbounded = 0
    """Bytes since the last part of a message that the application takes, and so bounds."""

    def data_received(self, data: bytes) -> None:
        self._unbounded += len(data)
        super().data_received(data)
        if self._unbounded > MAX_HEAD_BYTES and not self.transport.is_closing():
            self.send_400_response("The head of the request is too long.")

    def on_headers_complete(self) -> None:
        self._unbounded = 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._unbounded = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._unbounded = 0
        super().on_message_complete()
