"""Responses that are streams of server-sent events, in FastAPI's encoding (`fastapi.sse.format_sse_event`).

They are sent in portions of many events. A route that yields its events to FastAPI sends each one separately,
which takes a hundred times as long: 25 seconds for 100,000 lines of a log.

Readers of the same thing cost one: a portion is made once for all of them, and none is made while nothing
changes (service.api.notifier).
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Hashable
from contextlib import AbstractContextManager, suppress
from functools import partial
from typing import Any, Protocol, TypeVar

from fastapi.sse import EventSourceResponse, format_sse_event
from starlette.concurrency import run_in_threadpool

from service.errors import Unavailable

POLL_S = 0.5
HEARTBEAT_S = 10.0
FULL = 1 << 17
"""Bytes of a full portion. After a full portion the next one is fetched at once, without a pause."""
_KEPT_PORTIONS = 32
_THREADS = 8
"""How many threads at most make the portions that are asked for in the same moment."""
_MOMENT_S = 0.02
"""While portions are made, those that are ready are sent this often."""

Position = TypeVar("Position", bound=Hashable)
News = Callable[[Position], tuple[bytes, Position, bool]]
"""Returns the encoded events after a position, the position after them, and whether they were the last.

Returns about `FULL` bytes at most, which bounds the memory that a slow reader takes; less only if there is
nothing more.
"""
Topic = tuple[str, str]
"""What a stream follows: a kind, and an id of that kind."""


class Subscription(Protocol):
    """A topic while it is followed. `generation` is another number after each change."""

    @property
    def generation(self) -> int: ...

    async def changed(self, seen: int, seconds: float) -> None:
        """Returns when the generation is not `seen`, when the server stops, or after this time."""


Subscribe = Callable[[Topic], AbstractContextManager[Subscription]]


class Streams:
    """Makes the streams of one server. stopping: ends them, so that their readers connect again elsewhere."""

    def __init__(self, subscribe: Subscribe, stopping: threading.Event) -> None:
        self._subscribe, self._stopping = subscribe, stopping
        self._portions = _Portions()

    def response(
        self, topic: Topic, view: Hashable, news: News[Position], position: Position, first: bytes = b""
    ) -> EventSourceResponse:
        """Streams `first` and the events after `position` until the last, or until the server is stopping.

        topic, view: `news` is a function of these and the position, and may change when the topic does.
        Calls it again only when the client has taken the previous portion. Never fails once begun: while
        `news` raises Unavailable, it sends the error as a comment every `HEARTBEAT_S` seconds and retries.
        """
        return EventSourceResponse(
            self._events(topic, view, news, position, first),
            headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
        )

    async def _events(
        self, topic: Topic, view: Hashable, news: News[Position], position: Position, first: bytes
    ) -> AsyncIterator[bytes]:
        sent_at = time.monotonic()
        if first:
            yield first
        with self._subscribe(topic) as subscription:
            while not self._stopping.is_set():
                seen, portion, ended, problem = subscription.generation, b"", False, ""
                try:
                    portion, position, ended = await self._portions.get(
                        (topic, view, position, seen), partial(news, position)
                    )
                except Unavailable as error:
                    problem = " ".join(str(error).split())
                if portion:
                    sent_at = time.monotonic()
                    yield portion
                if ended:
                    return
                if len(portion) >= FULL:
                    continue
                while not self._stopping.is_set() and subscription.generation == seen:
                    silence = sent_at + HEARTBEAT_S - time.monotonic()
                    if silence <= 0:
                        sent_at = time.monotonic()
                        yield format_sse_event(comment=problem or "still here")
                        continue
                    await subscription.changed(seen, min(silence, POLL_S) if problem else silence)
                    if problem:
                        break


class _Portions:
    """The latest portions. Each is made once, by the first reader that asks for it, in a thread.

    Those that are asked for in the same moment, as after a look at all topics, share one thread: several
    would mostly wait for each other. Others join it while nothing comes of it, as when a disk is frozen.
    """

    def __init__(self) -> None:
        self._portions: OrderedDict[Hashable, asyncio.Future[Any]] = OrderedDict()
        self._asked: deque[_Asked] = deque()
        self._making: set[asyncio.Task[None]] = set()

    async def get(
        self, key: Hashable, make: Callable[[], tuple[bytes, Position, bool]]
    ) -> tuple[bytes, Position, bool]:
        """Returns the portion of this key. Raises what `make` raises; the next reader tries again."""
        made = self._portions.get(key)
        if made is None:
            loop = asyncio.get_running_loop()
            made = self._portions[key] = loop.create_future()
            made.add_done_callback(partial(self._forget_if_failed, key))
            if not self._asked:
                loop.call_soon(self._begin)
            self._asked.append((make, made))
            if len(self._portions) > _KEPT_PORTIONS:
                self._portions.popitem(last=False)
        # A reader that leaves must not cancel what others wait for.
        portion: tuple[bytes, Position, bool] = await asyncio.shield(made)
        return portion

    def _begin(self) -> None:
        asked, self._asked = self._asked, deque()
        making = asyncio.create_task(_made(asked))
        self._making.add(making)
        making.add_done_callback(self._making.discard)

    def _forget_if_failed(self, key: Hashable, made: asyncio.Future[Any]) -> None:
        if made.exception() is not None and self._portions.get(key) is made:
            del self._portions[key]


_Asked = tuple[Callable[[], tuple[bytes, Any, bool]], "asyncio.Future[Any]"]
_Made = tuple["asyncio.Future[Any]", "tuple[bytes, Any, bool] | Exception"]


async def _made(asked: deque[_Asked]) -> None:
    """Makes these portions, and gives each to its future a moment later: to do so at once takes longer."""
    made: deque[_Made] = deque()
    makers: set[asyncio.Task[None]] = set()
    left = len(asked)
    while asked or makers:
        if asked and (not makers or len(asked) == left) and len(makers) < _THREADS:
            makers.add(asyncio.create_task(run_in_threadpool(_make, asked, made)))
        left = len(asked)
        _, makers = await asyncio.wait(makers, timeout=_MOMENT_S)
        while made:
            future, portion = made.popleft()
            if isinstance(portion, Exception):
                future.set_exception(portion)
            else:
                future.set_result(portion)


def _make(asked: deque[_Asked], made: deque[_Made]) -> None:
    """Makes what is left of these portions, one after the other, until there is none left."""
    with suppress(IndexError):  # another thread has taken the last one
        while True:
            make, future = asked.popleft()
            try:
                made.append((future, make()))
            except Exception as error:
                made.append((future, error))
