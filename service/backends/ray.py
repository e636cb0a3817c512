"""The Ray cluster: Ray places the gangs, and a host agent on each machine forks their ranks.

    scheduler's thread ── orders ───► event loop ──┬── polls Ray every 2 s: machines, placement groups
                       ◄── attempts ──             ├── a conversation with each machine's agent
                                                   └── the launch of each attempt that has to start

No essential state is kept here: the next scheduler finds the placement groups and asks the agents.
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
"""Ray is reported as unavailable if it has not answered for this long."""
FIRST_SECONDS = 15.0
"""How long a new scheduler waits for existing agents to answer; then it goes on without them."""


class RayCluster:
    """The Cluster (service.backends.cluster) whose head is at `address`, "HOST:PORT".

    token: Ray's token, if Ray requires one (RAY_AUTH_MODE=token). fence: the scheduler's number, the fencing
    token; agents refuse orders with a lower one. queue: the queue's name; other queues' attempts are ignored.
    Blocks until Ray has listed its machines. Raises Unavailable.
    The process is then a driver of that cluster until it ends. Ray ends the process if the cluster's head is
    away for a minute or was restarted.
    """

    def __init__(self, address: str, *, token: str | None, fence: int, queue: str) -> None:
        os.environ["RAY_AUTH_MODE"] = "disabled" if token is None else "token"
        if token is not None:
            os.environ["RAY_AUTH_TOKEN"] = token
        # Otherwise a call on a closed connection would start a new cluster.
        os.environ["RAY_ENABLE_AUTO_CONNECT"] = "0"
        # Imported only now: Ray reads its environment variables when it is imported.
        from service.backends import ray_calls
        from service.backends.ray_loop import RayLoop

        ray_calls.connect(address, f"syncbn-{queue}")
        self._address, self._fence = address, fence
        self._changed = threading.Event()
        self._began = monotonic()
        self._events = asyncio.new_event_loop()
        self._loop = RayLoop(fence, self._changed.set)
        self._thread = threading.Thread(target=self._events.run_forever, name="ray-cluster", daemon=True)
        self._thread.start()
        try:
            asyncio.run_coroutine_threadsafe(self._loop.start(), self._events).result()
        except Exception as error:
            self.close()
            raise Unavailable("Ray", f"{address}: {error}") from error

    def nodes(self) -> list[Node]:
        return self._call(lambda: list(self._loop.nodes))

    def attempts(self) -> Mapping[str, Status]:
        found = self._call(self._loop.attempts)
        unknown = any(status.start == UNKNOWN_START for status in found.values())
        if unknown and monotonic() - self._began < FIRST_SECONDS:
            raise Unavailable("Ray", "its host agents have not answered yet")
        return found

    def launch(self, launch: Launch) -> None:
        self._call(self._loop.launch, launch)

    def stop(self, name: str, *, seconds: float) -> None:
        self._call(self._loop.stop, name, seconds)

    def end(self, name: str) -> None:
        self._call(self._loop.end, name)

    def release(self, name: str) -> None:
        self._call(self._loop.release, name)

    def wait(self, seconds: float) -> None:
        self._changed.wait(seconds)
        self._changed.clear()
        if self._loop.superseded:
            raise self._superseded()

    def wake(self) -> None:
        self._changed.set()

    def close(self) -> None:
        """Disconnects; attempts go on, and the next scheduler finds them."""
        asyncio.run_coroutine_threadsafe(self._loop.close(), self._events).result()
        self._events.call_soon_threadsafe(self._events.stop)
        self._thread.join()
        self._events.close()

    def _call(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Runs the call in the event loop and returns its result. The call must not block."""

        async def called() -> T:
            if self._loop.superseded:
                raise self._superseded()
            silent = monotonic() - self._loop.looked_at
            if silent > AWAY_SECONDS:
                raise Unavailable("Ray", f"{self._address} has not answered for {silent:.0f} s")
            return call(*args, **kwargs)

        return asyncio.run_coroutine_threadsafe(called(), self._events).result()

    def _superseded(self) -> Superseded:
        return Superseded(f"another scheduler has taken over from number {self._fence}")
