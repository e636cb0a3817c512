"""A line to a server, which tests cut: the server stands where it is, and nobody reaches it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any, Self

from service.ports import free_port

HOST = "127.0.0.1"


class Line:
    """From a port of its own to that of a server. Uncut while the `with` statement lasts."""

    def __init__(self, port: int) -> None:
        self.port = free_port()
        self.url = f"http://{HOST}:{self.port}"
        self._to = port
        self._listener: asyncio.Server | None = None
        self._connections: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)

    def __enter__(self) -> Self:
        self._thread.start()
        self.mend()
        return self

    def __exit__(self, *_: object) -> None:
        self.cut()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def cut(self) -> None:
        """Connections are lost, new ones refused."""
        self._do(self._cut())

    def mend(self) -> None:
        self._do(self._mend())

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _mend(self) -> None:
        self._listener = await asyncio.start_server(self._connected, HOST, self.port)

    async def _cut(self) -> None:
        if self._listener is not None:
            self._listener.close()
        for writer in self._connections:
            writer.transport.abort()
        while self._connections:
            await asyncio.sleep(0)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there_writer = await asyncio.open_connection(HOST, self._to)
        ends = {writer, there_writer}
        self._connections |= ends
        try:
            await asyncio.gather(_carry(reader, there_writer), _carry(there_reader, writer))
        finally:
            self._connections -= ends


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(2**16):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass
    finally:
        writer.close()
