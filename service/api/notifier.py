"""Tells streams when what they follow has changed: one look at all of it, however many readers there are."""

from __future__ import annotations

import asyncio
import itertools
import logging
import threading
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping
from contextlib import contextmanager

from starlette.concurrency import run_in_threadpool

from service.api import sse
from service.api.sse import Topic

Look = Callable[[Collection[Topic]], Mapping[Topic, Hashable]]
"""Returns what each topic looks like. Another value means that it has changed."""

_log = logging.getLogger(__name__)


class _Followed:
    """A topic and its readers: a `service.api.sse.Subscription`."""

    def __init__(self, generation: int) -> None:
        self.generation = generation
        self.readers = 0
        self.look: Hashable = None
        self._next: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def changed(self, seen: int, seconds: float) -> None:
        if self.generation == seen:
            # Not wait_for: on Python 3.11 it swallows a cancellation that comes together with the result, and
            # the stream of a server that ends would go on.
            await asyncio.wait([self._next], timeout=seconds)

    def wake(self) -> None:
        self._next.set_result(None)
        self._next = asyncio.get_running_loop().create_future()


class Notifier:
    """Looks at all followed topics every `sse.POLL_S` seconds, and at nothing while none is followed.

    For one event loop. stopping: wakes all readers.
    """

    def __init__(self, look: Look, stopping: threading.Event) -> None:
        self._look, self._stopping = look, stopping
        self._followed: dict[Topic, _Followed] = {}
        self._generations = itertools.count(1)
        self._ticking: asyncio.Task[None] | None = None

    @contextmanager
    def subscribe(self, topic: Topic) -> Iterator[_Followed]:
        """Follows the topic while the context lasts."""
        # A new number even for a topic that was followed before: it may have changed meanwhile.
        followed = self._followed.setdefault(topic, _Followed(next(self._generations)))
        followed.readers += 1
        if self._ticking is None or self._ticking.done():
            self._ticking = asyncio.create_task(self._tick())
        try:
            yield followed
        finally:
            followed.readers -= 1
            if not followed.readers:
                del self._followed[topic]

    async def _tick(self) -> None:
        looking: asyncio.Task[None] | None = None
        while self._followed:
            # In a task of its own: a look that hangs in the database must not hide that the server stops.
            if looking is None or looking.done():
                looking = asyncio.create_task(self._look_once())
            if self._stopping.is_set():
                for followed in self._followed.values():
                    followed.wake()
            await asyncio.sleep(sse.POLL_S)

    async def _look_once(self) -> None:
        topics = dict(self._followed)
        try:
            looks = await run_in_threadpool(self._look, list(topics))
        except Exception:  # a bug must not end all streams
            _log.exception("cannot look at what is followed")
            return
        for topic, followed in topics.items():
            if topic in looks and looks[topic] != followed.look:
                followed.look, followed.generation = looks[topic], next(self._generations)
                followed.wake()
