"""The conversation with the agent of one machine: one call that waits for news, and orders beside it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any

from service.backends import ray_calls
from service.backends.cluster import Node
from service.errors import Unavailable
from training.protocol import News, StartStatus, Superseded

log = logging.getLogger(__name__)

NEWS_SECONDS = 10.0
"""So long an agent keeps a question for news that has none."""
ANSWER_SECONDS = 30.0
"""So long an answer is waited for; then the question is asked again."""
SILENT_SECONDS = 600.0
"""An agent on a machine that Ray takes for alive may be silent for so long, as one is whose storage hangs;
then it is ended, and with it its ranks, and made anew."""
_PAUSE_SECONDS, _LONGEST_PAUSE = 0.5, 10.0


class Host:
    """Used in one thread, that of its event loop. `heard` is called when it knows more.

    instance: of the agent that has answered last; "" before. since: when that one answered first.
    gone_at: when the machine was found not to be in the cluster any more. Seconds since the epoch.
    """

    def __init__(self, node: Node, fence: int, heard: Callable[[Host], object]) -> None:
        self.node, self._fence, self._heard = node, fence, heard
        self.instance, self.since = "", 0.0
        self.gone_at: float | None = None
        self.superseded = False
        self._agent: ray_calls.Agent | None = None
        self._news: News | None = None
        self._starts: dict[str, StartStatus] = {}
        self._heard_at = time.monotonic()
        self._deaths = 0  # of agents that have told nothing before

    @property
    def answers(self) -> bool:
        """Whether its agent has told what it knows."""
        return self._news is not None

    @property
    def warm(self) -> bool:
        return self._news is not None and self._news.warm

    @property
    def attempts(self) -> set[str]:
        return set(self._starts)

    def known(self, attempt: str) -> StartStatus | None:
        return self._starts.get(attempt)

    async def call(self, method: str, *arguments: Any, seconds: float = ANSWER_SECONDS) -> Any:
        """Gives the agent an order. Raises what the agent raises, and Unavailable when it does not answer."""
        if self._agent is None:
            raise Unavailable("Ray", f"the host agent on {self.node.address} is being started")
        try:
            return await self._ask(method, *arguments, seconds=seconds)
        except (TimeoutError, ray_calls.AgentAway) as error:
            raise Unavailable("Ray", f"the host agent on {self.node.address} does not answer") from error
        except Superseded:
            self._supersede()
            raise

    async def converse(self) -> None:
        """Hears all news until it is cancelled, or another scheduler has taken over."""
        while not self.superseded:
            try:
                if self._agent is None:
                    self._agent = await ray_calls.in_thread(ray_calls.agent, self.node.id, self._fence)
                await self._hear()
            except Superseded:
                self._supersede()
            except Exception as error:
                await self._not_heard(error)

    async def _hear(self) -> None:
        seen = self._news.version if self._news is not None else -1
        told = await self._ask(
            "news", self.instance, seen, NEWS_SECONDS, seconds=NEWS_SECONDS + ANSWER_SECONDS
        )
        self._heard_at, self._deaths = time.monotonic(), 0
        if told.instance != self.instance:
            self.instance, self.since = told.instance, time.time()
        elif told.news.version == seen:
            return
        self._news = told.news
        self._starts = {status.attempt: status for status in told.news.starts}
        self._heard(self)

    async def _not_heard(self, error: Exception) -> None:
        silent = time.monotonic() - self._heard_at
        log.info("the host agent on %s: %s: %s", self.node.address, type(error).__name__, error)
        if isinstance(error, ray_calls.AgentDied):
            self._agent = None
            self._deaths += 1
            self._forget()
        elif silent >= SILENT_SECONDS and self._agent is not None:
            log.warning(
                "the host agent on %s has been silent for %.0f s: it is ended", self.node.address, silent
            )
            self._heard_at = time.monotonic()
            ray_calls.kill(self._agent)
        await asyncio.sleep(min(_PAUSE_SECONDS * 2**self._deaths, _LONGEST_PAUSE))

    def _forget(self) -> None:
        """The agent has ended for good, and its ranks with it; the next one knows nothing."""
        self._news, self._starts = None, {}
        self.instance, self.since = "", time.time()
        self._heard(self)

    def _supersede(self) -> None:
        self.superseded = True
        self._heard(self)

    async def _ask(self, method: str, *arguments: Any, seconds: float) -> Any:
        reference = getattr(self._agent, method).remote(self._fence, *arguments)
        return await ray_calls.answer(reference, seconds)
