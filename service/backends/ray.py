"""The real cluster: Ray places the gangs, and an agent on each machine forks their ranks.

    scheduler's thread ── orders ───► event loop ──┬── looks at Ray every 2 s: machines, placement groups
                       ◄── attempts ──             ├── a conversation with each machine's agent
                                                   └── the launch of each attempt that is to start

Nothing that matters is kept here: the next scheduler finds placement groups and agents, and asks them.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Mapping
from time import monotonic
from typing import ParamSpec, TypeVar

from service.backends.cluster import Launch, Node, Status
from service.backends.gangs import UNKNOWN_START
from service.errors import Unavailable
from training.protocol import Superseded

P = ParamSpec("P")
T = TypeVar("T")

AWAY_SECONDS = 10.0
"""Ray is said to be away when it has not answered for so long."""
FIRST_SECONDS = 15.0
"""So long the agents that were there before may take to answer a new scheduler; then it goes on without."""


class RayCluster:
    """The Cluster (service.backends.cluster) whose head is at `address`, "HOST:PORT".

    token: where Ray asks for one (RAY_AUTH_MODE=token). fence: the scheduler's number; the orders of one with
    a lower number are refused. queue: its name; the attempts of other queues are not seen.
    Blocks until Ray has named its machines. Raises Unavailable.
    The process is a driver of that cluster from then on, until it ends; Ray ends it when the cluster's head
    is away for a minute, or was started anew.
    """

    def __init__(self, address: str, *, token: str | None, fence: int, queue: str) -> None:
        os.environ["RAY_AUTH_MODE"] = "disabled" if token is None else "token"
        if token is not None:
            os.environ["RAY_AUTH_TOKEN"] = token
        # Otherwise a call after the end of the connection would start a cluster of its own.
        os.environ["RAY_ENABLE_AUTO_CONNECT"] = "0"
        # Only now: Ray reads its switches when it is imported.
        from service.backends import ray_calls
        from service.backends.ray_loop import RayLoop

        ray_calls.connect(address, f"syncbn-{queue}")
        self._address, self._fence = address, fence
        self._changed = threading.Event()
        self._began = monotonic()
        self._events = asyncio.new_event_loop()
        self._inside = RayLoop(fence, self._changed.set)
        self._thread = threading.Thread(target=self._events.run_forever, name="ray-cluster", daemon=True)
        self._thread.start()
        try:
            asyncio.run_coroutine_threadsafe(self._inside.start(), self._events).result()
        except Exception as error:
            self.close()
            raise Unavailable("Ray", f"{address}: {error}") from error

    def nodes(self) -> list[Node]:
        return self._call(lambda: list(self._inside.nodes))

    def attempts(self) -> Mapping[str, Status]:
        found = self._call(self._inside.attempts)
        unknown = any(status.start == UNKNOWN_START for status in found.values())
        if unknown and monotonic() - self._began < FIRST_SECONDS:
            raise Unavailable("Ray", "its host agents have not answered yet")
        return found

    def launch(self, launch: Launch) -> None:
        self._call(self._inside.launch, launch)

    def stop(self, name: str, *, seconds: float) -> None:
        self._call(self._inside.stop, name, seconds)

    def end(self, name: str) -> None:
        self._call(self._inside.end, name)

    def release(self, name: str) -> None:
        self._call(self._inside.release, name)

    def wait(self, seconds: float) -> None:
        self._changed.wait(seconds)
        self._changed.clear()
        if self._inside.superseded:
            raise self._superseded()

    def wake(self) -> None:
        self._changed.set()

    def close(self) -> None:
        """Leaves the cluster to the next scheduler; what runs there goes on."""
        asyncio.run_coroutine_threadsafe(self._inside.close(), self._events).result()
        self._events.call_soon_threadsafe(self._events.stop)
        self._thread.join()
        self._events.close()

    def _call(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """In the event loop, where nothing blocks."""

        async def called() -> T:
            if self._inside.superseded:
                raise self._superseded()
            silent = monotonic() - self._inside.looked_at
            if silent > AWAY_SECONDS:
                raise Unavailable("Ray", f"{self._address} has not answered for {silent:.0f} s")
            return call(*args, **kwargs)

        return asyncio.run_coroutine_threadsafe(called(), self._events).result()

    def _superseded(self) -> Superseded:
        return Superseded(f"another scheduler has followed number {self._fence}")
