"""The conversation with one machine's host agent: a long poll for news, and orders beside it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any

from service.backends import ray_calls
from service.backends.cluster import Node
from service.errors import Unavailable
from training.backoff import Backoff
from training.protocol import News, StartStatus, Superseded

log = logging.getLogger(__name__)

NEWS_SECONDS = 10.0
"""How long an agent holds a poll before it answers that there is no news."""
ANSWER_SECONDS = 30.0
"""Timeout of a call to an agent; the caller tries again."""
SILENT_SECONDS = 600.0
"""How long an agent may be silent while Ray reports its machine alive, for example because storage hangs.
Then the agent is killed together with its ranks, and Ray restarts it."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 10.0


class Host:
    """A machine's host agent, as this scheduler knows it. Used only in its event loop's thread.

    heard: called when there is news. instance: the id of the agent that answered last; "" before the first
    answer. since: when that instance first answered. gone_at: when the machine was found to have left the
    cluster, or None. Times are seconds since the epoch.
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
        self._backoff = Backoff(_FIRST_PAUSE, _LONGEST_PAUSE)

    @property
    def answers(self) -> bool:
        """Whether its agent has reported."""
        return self._news is not None

    @property
    def warm(self) -> bool:
        """Whether its agent's warm process is ready to fork ranks."""
        return self._news is not None and self._news.warm

    @property
    def attempts(self) -> set[str]:
        """The names of the attempts that its agent knows."""
        return set(self._starts)

    def known(self, attempt: str) -> StartStatus | None:
        """Returns the agent's latest report of the attempt, or None."""
        return self._starts.get(attempt)

    async def call(self, method: str, *arguments: Any, seconds: float = ANSWER_SECONDS) -> Any:
        """Sends the agent an order. Raises what the agent raises, and Unavailable if it does not answer."""
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
        """Polls for news until the task is cancelled, or another scheduler has taken over."""
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
        answer = await self._ask(
            "news", self.instance, seen, NEWS_SECONDS, seconds=NEWS_SECONDS + ANSWER_SECONDS
        )
        self._heard_at = time.monotonic()
        self._backoff.reset()
        if answer.instance != self.instance:
            self.instance, self.since = answer.instance, time.time()
        elif answer.news.version == seen:
            return
        self._news = answer.news
        self._starts = {status.attempt: status for status in answer.news.starts}
        self._heard(self)

    async def _not_heard(self, error: Exception) -> None:
        silent, pause = time.monotonic() - self._heard_at, _FIRST_PAUSE
        log.info("the host agent on %s: %s: %s", self.node.address, type(error).__name__, error)
        if isinstance(error, ray_calls.AgentDied):
            self._agent = None
            self._forget()
            pause = self._backoff.next()
        elif silent >= SILENT_SECONDS and self._agent is not None:
            log.warning(
                "the host agent on %s has been silent for %.0f s: killing it", self.node.address, silent
            )
            self._heard_at = time.monotonic()
            ray_calls.kill(self._agent)
        await asyncio.sleep(pause)

    def _forget(self) -> None:
        """Drops what the agent had reported: it has ended with its ranks, and the next one knows nothing."""
        self._news, self._starts = None, {}
        self.instance, self.since = "", time.time()
        self._heard(self)

    def _supersede(self) -> None:
        self.superseded = True
        self._heard(self)

    async def _ask(self, method: str, *arguments: Any, seconds: float) -> Any:
        reference = getattr(self._agent, method).remote(self._fence, *arguments)
        return await ray_calls.answer(reference, seconds)
