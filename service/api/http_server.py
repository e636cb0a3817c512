"""The HTTP server of the API."""

from __future__ import annotations

import asyncio

import uvicorn

SECONDS_BETWEEN = 0.5


class HttpServer(uvicorn.Server):
    """uvicorn's server, which looks twice a second instead of ten times whether it has to end.

    An idle server does nothing else. Each look also sets the clock of its Date headers.
    """

    async def main_loop(self) -> None:
        while not await self.on_tick(0):
            await asyncio.sleep(SECONDS_BETWEEN)
