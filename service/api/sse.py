"""Answers that are streams of server-sent events, in FastAPI's encoding (`fastapi.sse.format_sse_event`).

They are handed on in portions of many events. A route that yields its events to FastAPI hands on each by
itself, which takes a hundred times as long: 25 seconds for 100,000 lines of a log.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from typing import TypeVar

import anyio
from fastapi.sse import EventSourceResponse, format_sse_event
from starlette.concurrency import run_in_threadpool

from service.errors import Unavailable

POLL_S = 0.5
HEARTBEAT_S = 10.0
FULL = 1 << 17
"""Bytes of news that are taken for a part of what there is: more is asked for at once."""

Place = TypeVar("Place")
News = Callable[[Place], tuple[bytes, Place, bool]]
"""What is new since a place: the events, where they leave the reader, and whether these were the last.

Of much that is new it gives the first `FULL` bytes or so: that is what a reader costs who does not read.
"""


def stream(news: News[Place], place: Place) -> EventSourceResponse:
    """Asks for `news` until the last, for more of it only when the client has taken what there was. Never
    fails once begun: while a server is away it says so in comments and goes on trying.
    """
    return EventSourceResponse(
        _events(news, place), headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    )


async def _events(news: News[Place], place: Place) -> AsyncIterator[bytes]:
    spoken = time.monotonic()
    while True:
        portion, ended, silence = b"", False, "still here"
        try:
            portion, place, ended = await run_in_threadpool(news, place)
        except Unavailable as error:
            silence = " ".join(str(error).split())
        if not portion and time.monotonic() - spoken > HEARTBEAT_S:
            portion = format_sse_event(comment=silence)
        if portion:
            spoken = time.monotonic()
            yield portion
        if ended:
            return
        if len(portion) < FULL:
            await anyio.sleep(POLL_S)
