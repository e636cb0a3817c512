"""Answers that are streams of server-sent events (WHATWG HTML, section 9.2)."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from typing import TypeVar

import anyio
from fastapi.responses import StreamingResponse
from starlette.concurrency import run_in_threadpool

from service.errors import Unavailable

POLL_S = 0.5
HEARTBEAT_S = 10.0
FULL = 1 << 17
"""Characters of news that are taken for a part of what there is: more is asked for at once."""

Place = TypeVar("Place")
News = Callable[[Place], tuple[str, Place, bool]]
"""What is new since a place: the events, where they leave the reader, and whether these were the last.

Of much that is new it gives the first `FULL` characters or so: that is what a reader costs who does not read.
"""


def stream(news: News[Place], place: Place) -> StreamingResponse:
    """Asks for `news` until the last, for more of it only when the client has taken what there was. Never
    fails once begun: while a server is away it says so in comments and goes on trying.
    """
    return StreamingResponse(
        _events(news, place),
        media_type="text/event-stream",
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
    )


def event(name: str, data: str, place: object = None) -> str:
    """A carriage return, which progress bars print, would end the line of an event: it begins another."""
    lines = "".join(f"data: {line}\n" for line in data.rstrip("\r").split("\r"))
    return f"event: {name}\n" + (f"id: {place}\n" if place else "") + f"{lines}\n"


async def _events(news: News[Place], place: Place) -> AsyncIterator[str]:
    spoken = time.monotonic()
    while True:
        text, ended, silence = "", False, "still here"
        try:
            text, place, ended = await run_in_threadpool(news, place)
        except Unavailable as error:
            silence = " ".join(str(error).split())
        if not text and time.monotonic() - spoken > HEARTBEAT_S:
            text = f": {silence}\n\n"
        if text:
            spoken = time.monotonic()
            yield text
        if ended:
            return
        if len(text) < FULL:
            await anyio.sleep(POLL_S)
