"""Responses that are streams of server-sent events, in FastAPI's encoding (`fastapi.sse.format_sse_event`).

They are sent in portions of many events. A route that yields its events to FastAPI sends each one separately,
which takes a hundred times as long: 25 seconds for 100,000 lines of a log.
"""

from __future__ import annotations

import threading
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
"""Bytes of a full portion. After a full portion the next one is fetched at once, without a pause."""

Position = TypeVar("Position")
News = Callable[[Position], tuple[bytes, Position, bool]]
"""Returns the encoded events after a position, the position after them, and whether they were the last.

Returns about `FULL` bytes at most, which bounds the memory that a slow reader takes.
"""


def stream(news: News[Position], position: Position, stopping: threading.Event) -> EventSourceResponse:
    """Streams the events after `position` until the last, or until the server is stopping.

    Calls `news` again only when the client has taken the previous portion. Never fails once begun: while
    `news` raises Unavailable, it sends the error as a comment every `HEARTBEAT_S` seconds and retries.
    """
    return EventSourceResponse(
        _events(news, position, stopping),
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
    )


async def _events(
    news: News[Position], position: Position, stopping: threading.Event
) -> AsyncIterator[bytes]:
    sent_at = time.monotonic()
    while not stopping.is_set():
        portion, ended, heartbeat = b"", False, "still here"
        try:
            portion, position, ended = await run_in_threadpool(news, position)
        except Unavailable as error:
            heartbeat = " ".join(str(error).split())
        if not portion and time.monotonic() - sent_at > HEARTBEAT_S:
            portion = format_sse_event(comment=heartbeat)
        if portion:
            sent_at = time.monotonic()
            yield portion
        if ended:
            return
        if len(portion) < FULL:
            await anyio.sleep(POLL_S)
